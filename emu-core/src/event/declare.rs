//! The two macros by which the vocabulary is declared once.

/// An enum of a few words, written and read by them.
macro_rules! words {
    ($($(#[$doc:meta])* $Type:ident { $($(#[$word_doc:meta])* $Word:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $Type {
            $($(#[$word_doc])* $Word,)*
        }

        impl $Type {
            /// Every one, in the order of declaration.
            pub const ALL: &[$Type] = &[$($Type::$Word),*];

            /// As it is written.
            pub const fn word(self) -> &'static str {
                match self {
                    $($Type::$Word => $word,)*
                }
            }

            /// Position in `ALL`.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl crate::event::value::Field for $Type {
            fn put(&self) -> crate::event::value::Value<'static> {
                crate::event::value::Value::Word(self.word())
            }
            fn take(value: crate::event::value::Value<'_>) -> Option<$Type> {
                $Type::ALL.iter().copied().find(|one| one.put() == value)
            }
        }
    )*};
}

/// The events. For each: its meaning, its variant, where its name is from, the name, its group, its fields.
macro_rules! events {
    ($(
        $(#[$doc:meta])*
        $Variant:ident: $Origin:ident $name:literal in $Group:ident {
            $($(#[$field_doc:meta])* $field:ident: $Type:ty,)*
        }
    )*) => {
        /// One event of the memory pipeline. See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Event {
            $(
                $(#[$doc])*
                #[doc = concat!("\n\nWritten as `", $name, "`.")]
                $Variant { $($(#[$field_doc])* $field: $Type,)* },
            )*
        }

        /// Which event, without its fields.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum EventKind {
            $(
                #[doc = concat!("[`Event::", stringify!($Variant), "`].")]
                $Variant,
            )*
        }

        impl EventKind {
            /// Every kind, in the order of declaration.
            pub const ALL: &[EventKind] = &[$(EventKind::$Variant),*];

            /// The tracepoint's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(EventKind::$Variant => $name,)*
                }
            }

            /// Where the name is from.
            pub const fn origin(self) -> Origin {
                match self {
                    $(EventKind::$Variant => Origin::$Origin,)*
                }
            }

            /// What it is about.
            pub const fn group(self) -> Group {
                match self {
                    $(EventKind::$Variant => Group::$Group,)*
                }
            }

            /// The names of its fields, in order.
            pub const fn fields(self) -> &'static [&'static str] {
                match self {
                    $(EventKind::$Variant => &[$(stringify!($field)),*],)*
                }
            }

            /// Position in [`EventKind::ALL`], for tables by kind.
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The kind of this name.
            pub fn named(name: &str) -> Option<EventKind> {
                match name {
                    $($name => Some(EventKind::$Variant),)*
                    _ => None,
                }
            }
        }

        impl Event {
            /// Which event it is.
            pub const fn kind(&self) -> EventKind {
                match self {
                    $(Event::$Variant { .. } => EventKind::$Variant,)*
                }
            }

            /// Calls `each` with the name and the value of every field, in order.
            pub fn visit(&self, each: &mut dyn FnMut(&'static str, Value<'static>)) {
                match self {
                    $(Event::$Variant { $($field),* } => {
                        let _ = &each;
                        $(each(stringify!($field), $field.put());)*
                    })*
                }
            }

            /// The event of this kind whose fields `get` knows by name.
            ///
            /// # Errors
            /// [`ReadError`]: a field is missing, or is no value of its type.
            pub fn read<'v>(
                kind: EventKind,
                get: &mut dyn FnMut(&'static str) -> Option<Value<'v>>,
            ) -> Result<Event, ReadError> {
                match kind {
                    $(EventKind::$Variant => {
                        let _ = &get;
                        Ok(Event::$Variant {
                            $($field: {
                                let (event, field) = ($name, stringify!($field));
                                let value = get(field).ok_or(ReadError::Missing { event, field })?;
                                Field::take(value).ok_or(ReadError::Malformed { event, field })?
                            },)*
                        })
                    })*
                }
            }
        }
    };
}

pub(super) use {events, words};
