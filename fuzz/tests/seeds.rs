//! Each target on its seeds, and on some mutations of them: the same ones each time.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test ends by a panic")]

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use stepwell::testing::Dice;
use stepwell_fuzz::TARGETS;

/// Whether anything has panicked, also where the engine has caught it.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn runs(name: &str) {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::SeqCst);
        usual(info);
    }));
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    for seed in &seeds {
        run(name, seed);
    }
    let dice = Dice::new(7);
    for _ in 0..target.runs {
        run(name, &mutated(&dice, &seeds));
    }
}

fn run(name: &str, input: &[u8]) {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| stepwell_fuzz::run(name, input)));
    if outcome.is_err() || PANICKED.load(Ordering::SeqCst) {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-failed"));
        fs::write(&file, input).unwrap();
        panic!("{name} fails on what is in {}: \"{}\"", file.display(), input.escape_ascii());
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A seed with some changes: bytes that are others, that are gone or come twice, and parts of other
/// seeds.
fn mutated(dice: &Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let below = |most: usize| usize::try_from(dice.roll(most.max(1) as u64)).unwrap();
    let part = |of: &[u8]| {
        let from = below(of.len());
        let length = below((of.len() - from).min(64) + 1);
        from..from + length
    };
    let mut input = seeds[below(seeds.len())].clone();
    for _ in 0..=below(6) {
        let at = below(input.len() + 1);
        match dice.roll(6) {
            0 => input.insert(at, dice.any() as u8),
            1 => {
                let gone = part(&input);
                input.drain(gone);
            }
            2 if at < input.len() => input[at] ^= 1 << dice.roll(8),
            3 if at < input.len() => {
                input[at] = b"0123456789-+.eE\"\\{}[]:,/@?#*\n\0\xff"[below(31)];
            }
            4 => {
                let twice = input[part(&input)].to_vec();
                _ = input.splice(at..at, twice);
            }
            _ => {
                let other = &seeds[below(seeds.len())];
                _ = input.splice(at..at, other[part(other)].to_vec());
            }
        }
    }
    input
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            runs(stringify!($name));
        })*

        #[test]
        fn every_target_is_tested() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(tested.as_slice(), TARGETS.map(|target| target.name));
        }
    };
}

targets! { json value envelope export checkpoint schedule url http journal database }
