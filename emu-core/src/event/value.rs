//! The values of fields: what every type of a field becomes, and how it comes back.

use core::fmt;

use thiserror::Error;

use crate::access::AccessKind;
use crate::addr::{Gfn, Gpa, Gva, Sfn, Spa};
use crate::page::{Order, PageSize};

/// A field's value as every format writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An address, a frame number or raw bits: hexadecimal.
    Hex(u64),
    /// A count or a number of something: decimal.
    Dec(u64),
    /// A signed number: an errno.
    Int(i64),
    /// One of a few words.
    Word(&'a str),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Hex(n) => write!(f, "{n:#x}"),
            Value::Dec(n) => write!(f, "{n}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Word(word) => f.write_str(word),
        }
    }
}

/// A type that a field of an event may have.
pub trait Field: Sized {
    /// The value to write.
    fn put(&self) -> Value<'static>;
    /// The field that was written as `value`, or `None` when no field is.
    fn take(value: Value<'_>) -> Option<Self>;
}

/// Why fields make no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// A field is not there.
    #[error("{event} has no field {field}")]
    Missing {
        /// The event's name.
        event: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A field has a value that its type cannot have.
    #[error("the field {field} of {event} cannot be read")]
    Malformed {
        /// The event's name.
        event: &'static str,
        /// The field's name.
        field: &'static str,
    },
}

/// Bits as they stand in a register or a table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bits(pub u64);

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bits({:#x})", self.0)
    }
}

macro_rules! hexadecimal {
    ($($Type:ident: $put:expr, $take:expr;)*) => {$(
        impl Field for $Type {
            fn put(&self) -> Value<'static> {
                let raw: fn($Type) -> u64 = $put;
                Value::Hex(raw(*self))
            }
            fn take(value: Value<'_>) -> Option<$Type> {
                match value {
                    Value::Hex(raw) | Value::Dec(raw) => Some($take(raw)),
                    Value::Int(_) | Value::Word(_) => None,
                }
            }
        }
    )*};
}

hexadecimal! {
    Bits: |bits| bits.0, Bits;
    Gva: Gva::raw, Gva::new;
    Gpa: Gpa::raw, Gpa::new;
    Spa: Spa::raw, Spa::new;
    Gfn: Gfn::raw, Gfn::new;
    Sfn: Sfn::raw, Sfn::new;
}

macro_rules! decimal {
    ($($Type:ident)*) => {$(
        impl Field for $Type {
            fn put(&self) -> Value<'static> {
                Value::Dec(u64::from(*self))
            }
            fn take(value: Value<'_>) -> Option<$Type> {
                match value {
                    Value::Hex(raw) | Value::Dec(raw) => raw.try_into().ok(),
                    Value::Int(_) | Value::Word(_) => None,
                }
            }
        }
    )*};
}

decimal!(u8 u16 u32 u64);

impl Field for i32 {
    fn put(&self) -> Value<'static> {
        Value::Int(i64::from(*self))
    }
    fn take(value: Value<'_>) -> Option<i32> {
        match value {
            Value::Int(n) => n.try_into().ok(),
            Value::Dec(n) => n.try_into().ok(),
            Value::Hex(_) | Value::Word(_) => None,
        }
    }
}

impl Field for PageSize {
    fn put(&self) -> Value<'static> {
        Value::Word(match self {
            PageSize::Size4K => "4K",
            PageSize::Size2M => "2M",
            PageSize::Size1G => "1G",
        })
    }
    fn take(value: Value<'_>) -> Option<PageSize> {
        PageSize::ALL.into_iter().find(|size| size.put() == value)
    }
}

impl Field for Order {
    fn put(&self) -> Value<'static> {
        Value::Dec(u64::from(self.raw()))
    }
    fn take(value: Value<'_>) -> Option<Order> {
        u8::take(value).and_then(Order::new)
    }
}

impl Field for AccessKind {
    fn put(&self) -> Value<'static> {
        Value::Word(match self {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Execute => "execute",
        })
    }
    fn take(value: Value<'_>) -> Option<AccessKind> {
        [AccessKind::Read, AccessKind::Write, AccessKind::Execute].into_iter().find(|kind| kind.put() == value)
    }
}
