//! Both protocols against each other and against bytes that no writer makes.

use proptest::prelude::*;

use super::write::{Protocol, Writer};
use super::{Binary, Compact, Input, Kind, MAX_DEPTH, ThriftError};

/// A struct of every type, some of it nested, as a tree of numbers decides.
fn write(out: &mut Writer, choices: &mut impl Iterator<Item = u8>, depth: u32) {
    out.begin();
    let mut id = 0_i16;
    while let Some(choice) = choices.next() {
        id = if choice % 5 == 0 { id.wrapping_add(300) } else { id.wrapping_add(1 + i16::from(choice % 3)) };
        let value = i64::from(choice) << (choice % 55);
        match choice % 9 {
            0 => out.bool_field(id, choice > 100),
            1 => out.i16_field(id, value as i16),
            2 => out.i32_field(id, value as i32),
            3 => out.i64_field(id, value.wrapping_neg()),
            4 => out.double_field(id, f64::from(choice) / 7.0),
            5 => out.bytes_field(id, &vec![choice; usize::from(choice)]),
            6 if depth < 5 => {
                out.field(id, Kind::Struct);
                write(out, choices, depth + 1);
            }
            7 if depth < 5 => {
                let count = usize::from(choice % 20);
                out.structs_field(id, count);
                (0..count).for_each(|_| write(out, choices, depth + 1));
            }
            _ => break,
        }
    }
    out.end();
}

/// What a struct says, whichever protocol it is in.
fn read<'a, I: Input<'a>>(input: &mut I, said: &mut String) -> Result<(), ThriftError> {
    said.push('{');
    input.fields(|input, field| {
        said.push_str(&format!("{}:", field.id));
        match field.kind {
            Kind::Bool => said.push_str(&format!("{} ", input.bool()?)),
            Kind::I16 => said.push_str(&format!("{} ", input.i16()?)),
            Kind::I32 => said.push_str(&format!("{} ", input.i32()?)),
            Kind::I64 => said.push_str(&format!("{} ", input.i64()?)),
            Kind::Double => said.push_str(&format!("{} ", input.double()?)),
            Kind::Bytes => said.push_str(&format!("{:?} ", input.bytes()?)),
            Kind::Struct => read(input, said)?,
            Kind::List => {
                for _ in 0..input.list_of(Kind::Struct)? {
                    read(input, said)?;
                }
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    })?;
    said.push('}');
    Ok(())
}

fn all<'a, I: Input<'a>>(bytes: &'a [u8]) -> String {
    let (mut input, mut said) = (I::new(bytes), String::new());
    read(&mut input, &mut said).expect("what the writer wrote");
    assert_eq!(input.cursor().left(), 0);
    // Skipping goes as far as reading.
    let mut input = I::new(bytes);
    input.skip(Kind::Struct).expect("what was read");
    assert_eq!(input.cursor().left(), 0);
    said
}

proptest! {
    #[test]
    fn both_protocols_read_what_was_written(choices in proptest::collection::vec(any::<u8>(), 0..80)) {
        let said = [Protocol::Binary, Protocol::Compact].map(|protocol| {
            let mut out = Writer::new(protocol);
            write(&mut out, &mut choices.iter().copied(), 0);
            match protocol {
                Protocol::Binary => all::<Binary<'_>>(&out.bytes),
                Protocol::Compact => all::<Compact<'_>>(&out.bytes),
            }
        });
        prop_assert_eq!(&said[0], &said[1]);
    }

    #[test]
    fn noise_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for kind in [Kind::Struct, Kind::List, Kind::Map, Kind::Bytes] {
            let _ = Binary::new(&bytes).skip(kind);
            let _ = Compact::new(&bytes).skip(kind);
        }
        let _ = Binary::new(&bytes).message();
        let _ = Compact::new(&bytes).message();
    }
}

#[test]
fn nesting_ends() {
    let nested = |levels: usize| {
        let mut bytes = vec![0x1c; levels - 1];
        bytes.extend(vec![0; levels]);
        bytes
    };
    let most = MAX_DEPTH as usize;
    assert_eq!(Compact::new(&nested(most)).skip(Kind::Struct), Ok(()));
    let error = Compact::new(&nested(most + 1)).skip(Kind::Struct).unwrap_err();
    assert_eq!(error.what, "nested too deep");
    let lists = vec![0x19; 100_000];
    assert_eq!(Compact::new(&lists).skip(Kind::List).unwrap_err().what, "nested too deep");
}

#[test]
fn maps_sets_and_bools_are_skipped() {
    // Binary: a map of bool to list of i16, then a set of bytes.
    let binary = [
        &[13, 0, 1, 2, 15, 0, 0, 0, 1, 1, 6, 0, 0, 0, 1, 0, 7][..],
        &[14, 0, 2, 3, 0, 0, 0, 2, 8, 9],
        &[13, 0, 3, 0, 0, 0, 0, 0, 0],
        &[0],
    ];
    let bytes = binary.concat();
    let mut input = Binary::new(&bytes);
    assert_eq!((input.skip(Kind::Struct), input.cursor().left()), (Ok(()), 0));
    // Compact: the same, with a bool as a field before.
    let compact = [&[0x11][..], &[0x1b, 1, 0x19, 1, 0x14, 14], &[0x1a, 0x23, 8, 9], &[0x1b, 0], &[0]].concat();
    let mut input = Compact::new(&compact);
    assert_eq!((input.skip(Kind::Struct), input.cursor().left()), (Ok(()), 0));
}
