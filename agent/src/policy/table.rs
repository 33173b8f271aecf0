//! What the table of keys ([`super::keys`]) is made into.

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

use crate::policy::kinds::Kind;

/// A key of the policy.
pub(super) struct Key {
    /// Its whole name, as `section.key`.
    pub(super) name: &'static str,
    /// Whether what is written for it has the right type.
    pub(super) fits: fn(Spanned<DeValue<'_>>) -> Result<(), toml::de::Error>,
}

/// The key `name`, whose values are of kind `K`.
pub(super) const fn key<V, K: Kind<Value = V>>(name: &'static str, _: &K) -> Key {
    Key { name, fits: |value| written::<K::Written>(value).map(drop) }
}

/// A value as the type that it has in TOML. One for each such type, and not one for each kind or key.
#[inline(never)]
pub(super) fn written<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Result<T, toml::de::Error> {
    T::deserialize(ValueDeserializer::from(value))
}

/// The default of a key: the last part of its row.
macro_rules! default {
    (required) => {
        None
    };
    (default $default:expr) => {
        Some($default)
    };
}

/// Makes a table of keys into the policy's types, the list of its keys, and what reads and writes it.
///
/// A row is the key's explanation, `name: type = kind, default value;` or, in place of the default, `required`. A
/// default may use the sections above its own.
macro_rules! policy {
    ($(
        $(#[$about:meta])*
        $section:ident: $Section:ident {
            $($(#[$what:meta])* $key:ident: $Type:ty = $kind:expr, $presence:ident $($default:expr)?;)+
        }
    )+) => {
        /// The resolved policy. Every value has been checked; [`Policy::merge`] is the only way to one.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Policy {
            $($(#[$about])* pub $section: $Section,)+
        }

        $(
            $(#[$about])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $Section {
                $($(#[$what])* pub $key: $Type,)+
            }
        )+

        /// Every key, in the order of the documents.
        pub(super) const KEYS: &[Key] =
            &[$($(key::<$Type, _>(concat!(stringify!($section), ".", stringify!($key)), &$kind),)+)+];

        /// The policy that is written in `layers`: every value checked, and defaults where there is none.
        pub(super) fn resolve(layers: &Layers<'_>) -> Result<Policy, PolicyError> {
            $(let $section = $Section {
                $($key: layers.value(
                    concat!(stringify!($section), ".", stringify!($key)),
                    &$kind,
                    || default!($presence $($default)?),
                )?,)+
            };)+
            Ok(Policy { $($section,)+ })
        }

        /// Each section with what is written for its keys, but for those that must be left out.
        pub(super) fn write(policy: &Policy) -> Vec<(&'static str, Vec<(&'static str, toml::Value)>)> {
            vec![$((stringify!($section), {
                let keys = [$((stringify!($key), $kind.write(&policy.$section.$key).map(toml::Value::from)),)+];
                keys.into_iter().filter_map(|(key, written)| Some((key, written?))).collect()
            }),)+]
        }

        /// What documents must mention of each key's values.
        #[cfg(test)]
        pub(super) fn terms() -> Vec<(&'static str, Vec<String>)> {
            vec![$($((concat!(stringify!($section), ".", stringify!($key)), terms_of::<$Type, _>(&$kind)),)+)+]
        }

        /// Any policy, but for what no single key decides.
        #[cfg(test)]
        pub(super) fn any_policy() -> impl proptest::strategy::Strategy<Value = Policy> {
            use proptest::strategy::Strategy;
            $(let $section =
                ($(any_of::<$Type, _>(&$kind),)+).prop_map(|($($key,)+)| $Section { $($key,)+ });)+
            ($($section,)+).prop_map(|($($section,)+)| Policy { $($section,)+ })
        }
    };
}

pub(super) use {default, policy};

/// The terms of a kind, whose type the row names.
#[cfg(test)]
pub(super) fn terms_of<V, K: Kind<Value = V>>(kind: &K) -> Vec<String> {
    kind.terms()
}

/// Any value of a kind, whose type the row names.
#[cfg(test)]
pub(super) fn any_of<V, K: Kind<Value = V>>(kind: &K) -> proptest::strategy::BoxedStrategy<V> {
    kind.any()
}
