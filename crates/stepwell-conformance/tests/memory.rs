//! The store in memory, which is the model, keeps the contract itself.

mod support;

stepwell_conformance::suite!(crate::support::Memory);
