//! Serialisation of values to JSON that refuses values which JSON would not return as they are.
//!
//! serde_json writes NaN and infinities as `null`, and `Some(None)` as it writes `None`. The
//! program notices either only when it reads the value, which is after the side effect of the step.
//! serde_json also follows nested values until the stack ends. [`to_json`] passes every call of a
//! value's `Serialize` on to serde_json, and checks the value of the call.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Display;

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The maximum depth of lists and objects in a payload, which is below the limit of serde_json
/// (127).
pub(crate) const MAX_DEPTH: usize = 100;

/// The maximum number of open calls of `serialize`, because `Some` and newtypes nest without a
/// bracket in the JSON.
const MAX_CALLS: usize = 5 * MAX_DEPTH;

/// The name by which serde_json recognises JSON that is already text.
const RAW: &str = "$serde_json::private::RawValue";

/// Returns the value as JSON.
pub(crate) fn to_json<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    to_json_noting(value, &Cell::default())
}

/// Returns the value as JSON, and sets `wide` when it holds integers of 128 bits.
pub(crate) fn to_json_noting<T: Serialize + ?Sized>(
    value: &T,
    wide: &Cell<bool>,
) -> serde_json::Result<String> {
    let mut json = Vec::with_capacity(128);
    let inner = &mut serde_json::Serializer::new(&mut json);
    value.serialize(Strict { inner, at: Place::new(wide) })?;
    String::from_utf8(json).map_err(Error::custom)
}

/// Returns the value as a [`serde_json::Value`].
pub(crate) fn to_value<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<serde_json::Value> {
    value.serialize(Strict {
        inner: serde_json::value::Serializer,
        at: Place::new(&Cell::default()),
    })
}

/// Returns JSON text without line breaks, which would end a line of a log or of a stream.
pub(crate) fn one_line(json: &str) -> Cow<'_, str> {
    // The strings of a JSON text hold no line breaks.
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

/// Returns the depth of lists and objects in JSON text.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The reason for which text is refused that is not [whole](is_whole).
pub(crate) const HALF_A_CHARACTER: &str = "it holds half of a character (a surrogate without its \
                                           other half, such as `\\ud800`), which no text can be \
                                           read from";

/// Returns whether each escape of JSON text is a character, alone or with the next escape.
pub(crate) fn is_whole(json: &str) -> bool {
    let mut rest = json.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        let (_, escape) = rest.split_at(at);
        let length = match (unit(escape), escape.get(6..).and_then(unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => return false,
            (Some(_), _) => 6,
            (None, _) => 2,
        };
        rest = escape.get(length..).unwrap_or_default();
    }
    true
}

/// Returns the number of the escape that begins here.
fn unit(escape: &[u8]) -> Option<u16> {
    let digits = str::from_utf8(escape.strip_prefix(b"\\u")?.get(..4)?).ok()?;
    u16::from_str_radix(digits, 16).ok()
}

/// The position of a value within the whole.
#[derive(Clone, Copy)]
struct Place<'n> {
    depth: usize,
    calls: usize,
    /// `true` directly in a `Some`.
    in_some: bool,
    /// `true` for JSON text, which is written as it is.
    raw: bool,
    /// A flag that is set when there is an integer of 128 bits.
    wide: &'n Cell<bool>,
}

impl<'n> Place<'n> {
    fn new(wide: &'n Cell<bool>) -> Self {
        Self { depth: 0, calls: 0, in_some: false, raw: false, wide }
    }

    fn deeper<E: Error>(self, levels: usize) -> Result<Self, E> {
        let Self { depth, calls, wide, .. } = self;
        let inner = Self { depth: depth + levels, calls: calls + 1, ..Self::new(wide) };
        if inner.depth > MAX_DEPTH || inner.calls > MAX_CALLS {
            let limit = if inner.depth > MAX_DEPTH { MAX_DEPTH } else { MAX_CALLS };
            return Err(E::custom(format_args!("it is nested over {limit} levels deep")));
        }
        Ok(inner)
    }

    /// Returns the position within a wrapper that leaves no trace in the JSON.
    fn wrapped<E: Error>(self, in_some: bool) -> Result<Self, E> {
        Ok(Self { in_some, ..self.deeper(0)? })
    }

    /// Checks that `null` may stand at this position.
    fn null<E: Error>(self) -> Result<(), E> {
        if self.in_some {
            return Err(E::custom(
                "it holds a `Some` of something that is null in JSON (`Some(())`, `Some(None)`), \
                 which would come back as `None`: use a `bool` or an enum",
            ));
        }
        Ok(())
    }
}

fn finite<E: Error>(finite: bool, number: impl Display) -> Result<(), E> {
    if finite {
        return Ok(());
    }
    Err(E::custom(format_args!("it holds the number {number}, which JSON has no way to write")))
}

/// The serializer `inner`, and the position of its value; for a list or object, the position of its
/// members.
struct Strict<'n, S> {
    inner: S,
    at: Place<'n>,
}

struct Member<'a, 'n, T: ?Sized> {
    value: &'a T,
    at: Place<'n>,
}

impl<T: Serialize + ?Sized> Serialize for Member<'_, '_, T> {
    fn serialize<S: Serializer>(&self, inner: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Strict { inner, at: self.at })
    }
}

macro_rules! plain {
    ($($method:ident($type:ty))*) => {
        $(fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        })*
    };
}

impl<'n, S: Serializer> Serializer for Strict<'n, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Strict<'n, S::SerializeSeq>;
    type SerializeTuple = Strict<'n, S::SerializeTuple>;
    type SerializeTupleStruct = Strict<'n, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Strict<'n, S::SerializeTupleVariant>;
    type SerializeMap = Strict<'n, S::SerializeMap>;
    type SerializeStruct = Strict<'n, S::SerializeStruct>;
    type SerializeStructVariant = Strict<'n, S::SerializeStructVariant>;

    plain! {
        serialize_bool(bool) serialize_char(char)
        serialize_i8(i8) serialize_i16(i16) serialize_i32(i32) serialize_i64(i64)
        serialize_u8(u8) serialize_u16(u16) serialize_u32(u32) serialize_u64(u64)
    }

    fn serialize_i128(self, value: i128) -> Result<S::Ok, S::Error> {
        self.at.wide.set(true);
        self.inner.serialize_i128(value)
    }

    fn serialize_u128(self, value: u128) -> Result<S::Ok, S::Error> {
        self.at.wide.set(true);
        self.inner.serialize_u128(value)
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        finite(value.is_finite(), value)?;
        self.inner.serialize_f32(value)
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        finite(value.is_finite(), value)?;
        self.inner.serialize_f64(value)
    }

    fn serialize_str(self, text: &str) -> Result<S::Ok, S::Error> {
        if self.at.raw {
            self.at.deeper(depth(text))?;
            if !is_whole(text) {
                return Err(S::Error::custom(HALF_A_CHARACTER));
            }
            if text == "null" {
                self.at.null()?;
            }
            return self.inner.serialize_str(&one_line(text));
        }
        self.inner.serialize_str(text)
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<S::Ok, S::Error> {
        self.at.deeper(1)?;
        self.inner.serialize_bytes(bytes)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.at.null()?;
        self.inner.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.serialize_some(&Member { value, at: self.at.wrapped(true)? })
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.at.null()?;
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.at.null()?;
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let at = self.at.wrapped(self.at.in_some)?;
        self.inner.serialize_newtype_struct(name, &Member { value, at })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let at = self.at.deeper(1)?;
        self.inner.serialize_newtype_variant(name, index, variant, &Member { value, at })
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        Ok(Strict { at: self.at.deeper(1)?, inner: self.inner.serialize_seq(len)? })
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        Ok(Strict { at: self.at.deeper(1)?, inner: self.inner.serialize_tuple(len)? })
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        Ok(Strict { at: self.at.deeper(1)?, inner: self.inner.serialize_tuple_struct(name, len)? })
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let inner = self.inner.serialize_tuple_variant(name, index, variant, len)?;
        Ok(Strict { at: self.at.deeper(2)?, inner })
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        Ok(Strict { at: self.at.deeper(1)?, inner: self.inner.serialize_map(len)? })
    }

    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        let at = if name == RAW { Place { raw: true, ..self.at } } else { self.at.deeper(1)? };
        Ok(Strict { at, inner: self.inner.serialize_struct(name, len)? })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let inner = self.inner.serialize_struct_variant(name, index, variant, len)?;
        Ok(Strict { at: self.at.deeper(2)?, inner })
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! members {
    ($($trait:ident::$method:ident($($name:ident: $key:ty)?))*) => {
        $(impl<S: $trait> $trait for Strict<'_, S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($name: $key,)?
                value: &T,
            ) -> Result<(), S::Error> {
                self.inner.$method($($name,)? &Member { value, at: self.at })
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        })*
    };
}

members! {
    SerializeSeq::serialize_element()
    SerializeTuple::serialize_element()
    SerializeTupleStruct::serialize_field()
    SerializeTupleVariant::serialize_field()
    SerializeStruct::serialize_field(key: &'static str)
    SerializeStructVariant::serialize_field(key: &'static str)
}

impl<S: SerializeMap> SerializeMap for Strict<'_, S> {
    type Ok = S::Ok;
    type Error = S::Error;

    // serde_json refuses the keys that it could not read.
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.inner.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.inner.serialize_value(&Member { value, at: self.at })
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends by a panic")]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::base::payload::Payload;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
    struct Unit;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        Newtype(f64),
        Tuple(f32, Option<i128>),
        Struct { bytes: Vec<u8>, inner: Option<Box<Self>> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "type")]
    enum Tagged {
        Price { amount: f64 },
        Nothing,
    }

    #[derive(Debug, Serialize)]
    struct Wrapper<T>(T);

    #[derive(Debug, Serialize)]
    struct Flat {
        name: &'static str,
        #[serde(flatten)]
        rest: BTreeMap<&'static str, f64>,
    }

    #[track_caller]
    fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) {
        let json = to_json(&value).unwrap();
        assert_eq!(json, serde_json::to_string(&value).unwrap());
        assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    }

    #[track_caller]
    fn refused(value: impl Serialize) -> String {
        to_json(&value).unwrap_err().to_string()
    }

    #[test]
    fn what_json_can_hold_comes_back() {
        comes_back((i128::MIN, u128::MAX, u64::MAX, i64::MIN, 'ä', true, ()));
        comes_back((
            f64::MIN_POSITIVE,
            f64::MAX,
            -0.0_f64,
            5e-324_f64,
            f32::MAX,
            f32::MIN_POSITIVE,
        ));
        comes_back(BTreeMap::from([(u128::MAX, Some(1)), (7, None)]));
        comes_back(BTreeMap::from([(true, Unit)]));
        comes_back(BTreeMap::from([('x', vec![Ok(()), Err(Unit)])]));
        comes_back(BTreeMap::from([(Some(3_u8), Some(Some(3)))]));
        comes_back([
            Shape::Unit,
            Shape::Newtype(0.1),
            Shape::Tuple(0.1, Some(-1)),
            Shape::Tuple(0.1, None),
        ]);
        comes_back(Shape::Struct { bytes: vec![0, 255], inner: Some(Box::new(Shape::Unit)) });
        comes_back([Tagged::Price { amount: 9787.333499999999 }, Tagged::Nothing]);
        comes_back(Payload::from_json(r#"{"a":1e400,"b":0.10000000000000000000000001}"#));
    }

    #[test]
    fn numbers_that_json_has_not_are_refused_wherever_they_are() {
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for error in [
                refused(number),
                refused(number as f32),
                refused(Some(number)),
                refused([(1, Wrapper(number))]),
                refused(BTreeMap::from([("a", vec![number])])),
                refused(Shape::Newtype(number)),
                refused(Shape::Tuple(number as f32, None)),
                refused(Shape::Struct {
                    bytes: vec![],
                    inner: Some(Box::new(Shape::Newtype(number))),
                }),
                refused(Tagged::Price { amount: number }),
                refused(Flat { name: "x", rest: BTreeMap::from([("y", number)]) }),
            ] {
                assert!(error.contains(&number.to_string()), "{error}");
            }
        }
    }

    #[test]
    fn half_a_character_is_found_among_escapes() {
        for whole in
            [r"", r"\\ud800", r"\ud83d\ude00", r"\u00e4\n\ud83d\ude00x", r"\ue000\ud7ff", r"\"]
        {
            assert!(is_whole(whole), "{whole}");
        }
        for half in [
            r"\ud800",
            r"\uDFFF",
            r"\ud83d\ud83d\ude00",
            r"\ud83d \ude00",
            r"\\\ud800",
            r"\ud83d\n",
        ] {
            assert!(!is_whole(half), "{half}");
            let raw = RawValue::from_string(format!("\"{half}\"")).unwrap();
            assert!(refused(raw).contains("half of a character"));
        }
    }

    #[test]
    fn some_of_null_is_refused_and_not_taken_for_none() {
        let null = RawValue::from_string("null".into()).unwrap();
        for error in [
            refused(Some(())),
            refused(Some(None::<u8>)),
            refused(Some(Unit)),
            refused(Some(Some(()))),
            refused(Some(Wrapper(None::<u8>))),
            refused([Some(Value::Null)]),
            refused(Some(null)),
            refused((1, BTreeMap::from([("a", Some(Some(Unit)))]))),
        ] {
            assert!(error.contains("would come back as `None`"), "{error}");
        }
        comes_back((
            Some([()]),
            Some(vec![None::<u8>]),
            Some(Ok::<(), ()>(())),
            Some(Wrapped { inner: None }),
        ));
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped {
        inner: Option<u8>,
    }

    #[derive(Serialize)]
    struct Endless(Option<Box<Self>>);

    #[derive(Serialize)]
    struct Link {
        next: Option<Box<Self>>,
    }

    #[test]
    fn nesting_ends_at_the_limit_whatever_it_is_made_of() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(depth(&to_json(&nested(MAX_DEPTH)).unwrap()), MAX_DEPTH);
        let raw = |levels| RawValue::from_string("[".repeat(levels) + &"]".repeat(levels)).unwrap();
        assert!(to_json(&[raw(MAX_DEPTH - 1)]).is_ok());
        let link = |levels| {
            (0..levels).fold(Link { next: None }, |next, _| Link { next: Some(Box::new(next)) })
        };
        assert!(to_json(&link(MAX_DEPTH - 1)).is_ok());
        let endless = (0..20_000).fold(Endless(None), |inner, _| Endless(Some(Box::new(inner))));
        for error in [
            refused(nested(MAX_DEPTH + 1)),
            refused([raw(MAX_DEPTH)]),
            refused(raw(1_000_000)),
            refused(link(20_000)),
            refused(endless),
        ] {
            assert!(error.contains("levels deep"), "{error}");
        }
        assert_eq!(depth(r#"{"[[\"[[":[{"a":"\\"},[]]}"#), 3);
    }

    proptest! {
        #[test]
        fn every_finite_float_comes_back(bits: u64, cents: u32) {
            for float in [f64::from_bits(bits), f64::from(cents) / 100.0 * 1.19] {
                match to_json(&float) {
                    Ok(json) => {
                        let back: f64 = Payload::from_json(json).decode().unwrap();
                        prop_assert_eq!(back.to_bits(), float.to_bits());
                    }
                    Err(_) => prop_assert!(!float.is_finite()),
                }
                let float = float as f32;
                if float.is_finite() {
                    let back: f32 = Payload::from_json(to_json(&float).unwrap()).decode().unwrap();
                    prop_assert_eq!(back.to_bits(), float.to_bits());
                }
            }
        }
    }
}
