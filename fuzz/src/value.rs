//! Values of a program's types: what is accepted comes back as the same value.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use serde::{Deserialize, Serialize};
use stepwell::Payload;

use crate::said;

#[derive(Arbitrary, Debug, Serialize, Deserialize)]
enum Shape {
    Unit,
    Bool(bool),
    Int(i64),
    Large(u64),
    Wide(i128),
    Float(f64),
    Single(f32),
    Char(char),
    Text(String),
    Bytes(Vec<u8>),
    Maybe(Option<Box<Self>>),
    Nested(Option<Option<u8>>),
    Nothing(Option<()>),
    List(Vec<Self>),
    Pair(Box<Self>, Box<Self>),
    Keys(BTreeMap<i32, Self>),
    WideKeys(BTreeMap<u128, u8>),
    CharKeys(BTreeMap<char, Self>),
    Names(BTreeMap<String, Self>),
    Fields { first: Option<u64>, second: (), third: Box<Self> },
    Tagged(Tagged),
    Adjacent(Adjacent),
    Flat(Flat),
    Default(Skipped),
}

#[derive(Arbitrary, Debug, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Tagged {
    Empty,
    Price { amount: f64, single: f32 },
    Wide { cents: u128 },
    Keyed { of: BTreeMap<u8, u8> },
    Named { of: BTreeMap<String, Option<i64>> },
}

#[derive(Arbitrary, Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "of")]
enum Adjacent {
    Empty,
    Wide(i128),
    Inner(Option<Box<Shape>>),
}

#[derive(Arbitrary, Debug, Serialize, Deserialize)]
struct Flat {
    name: String,
    #[serde(flatten)]
    rest: BTreeMap<String, f64>,
}

#[derive(Arbitrary, Debug, Serialize, Deserialize)]
struct Skipped {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    may: Option<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    must: Vec<u8>,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (Ok(levels), Ok(value)) = (u8::arbitrary(&mut input), Shape::arbitrary(&mut input)) else {
        return;
    };
    let value = (0..levels.saturating_sub(150)).fold(value, |value, _| Shape::List(vec![value]));
    match Payload::encode_proven(&value, Payload::DEFAULT_LIMIT) {
        Ok(payload) => {
            let read: Shape = payload.decode().expect("what is proven can be read");
            // By what they show: that tells 0.0 and -0.0 apart.
            assert_eq!(format!("{read:?}"), format!("{value:?}"), "{payload}");
        }
        Err(error) => _ = said(error, data.len()),
    }
    if let Ok(payload) = Payload::encode(&value, Payload::DEFAULT_LIMIT) {
        serde_json::from_str::<Payload>(payload.as_str()).expect("a payload is JSON");
    }
}
