// SPDX-License-Identifier: MIT OR Apache-2.0

//! How values of the state are written in JSON.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// 128 random bits that name a thing once and for all: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unique(pub u128);

impl std::fmt::Display for Unique {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for Unique {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "32 hexadecimal digits are wanted";
        let value = u128::from_str_radix(text, 16).map_err(|_| WRONG)?;
        // One value has one spelling.
        if Self(value).to_string() != text {
            return Err(WRONG);
        }
        Ok(Self(value))
    }
}

impl Serialize for Unique {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A node is its number.
pub(crate) mod node {
    use super::{Deserialize, Deserializer, Serializer, de};
    use ssi::id::NodeId;

    pub(crate) fn serialize<S: Serializer>(
        node: &NodeId,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(node.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<NodeId, D::Error> {
        NodeId::new(u16::deserialize(deserializer)?)
            .ok_or_else(|| de::Error::custom("no number of a node"))
    }
}

/// A map whose keys are numbers of nodes.
pub(crate) mod by_node {
    use std::collections::BTreeMap;

    use super::{Deserialize, Deserializer, Serialize, Serializer, de};
    use ssi::id::NodeId;

    pub(crate) fn serialize<S: Serializer, V: Serialize>(
        map: &BTreeMap<NodeId, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(node, value)| (node.get(), value)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<NodeId, V>, D::Error> {
        BTreeMap::<u16, V>::deserialize(deserializer)?
            .into_iter()
            .map(|(n, value)| Some((NodeId::new(n)?, value)))
            .collect::<Option<_>>()
            .ok_or_else(|| de::Error::custom("no number of a node"))
    }
}

/// Bytes nobody looks into are base 64.
pub(crate) mod base64 {
    use ::base64::Engine;
    use ::base64::engine::general_purpose::STANDARD;

    use super::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(deserializer)?)
            .map_err(de::Error::custom)
    }
}

/// As [`base64`], of bytes that are shared.
pub(crate) mod shared_base64 {
    use std::sync::Arc;

    use super::{Deserializer, Serializer, base64};

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Arc<[u8]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        base64::serialize(bytes, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<[u8]>, D::Error> {
        base64::deserialize(deserializer).map(Arc::from)
    }
}

/// As [`base64`], or null.
pub(crate) mod optional_base64 {
    use super::{Deserialize, Deserializer, Serialize, Serializer, base64};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Bytes(#[serde(with = "base64")] Vec<u8>);

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.clone().map(Bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Bytes>::deserialize(deserializer)?.map(|b| b.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_value_has_one_spelling() {
        let value = Unique(0xab);
        let text = format!("{}ab", "0".repeat(30));
        assert_eq!(value.to_string(), text);
        assert_eq!(text.parse(), Ok(value));
        for wrong in ["", "ab", &text.to_uppercase(), &format!("+{}", &text[1..])] {
            assert!(wrong.parse::<Unique>().is_err(), "{wrong}");
        }
    }
}
