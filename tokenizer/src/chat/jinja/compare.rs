//! How values compare: Python's `==`, `<` and `in`, and sorting.

use std::cmp::Ordering;

use super::Raise;
use super::value::{Meter, SeqKind, Value};

impl Value {
    /// Python's `==`.
    pub fn equals(&self, other: &Self, meter: &Meter) -> Result<bool, Raise> {
        meter.work(1)?;
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(left), Self::Str(right)) => {
                meter.touch(left.raw().len().min(right.raw().len()))?;
                left.as_str() == right.as_str()
            }
            (Self::Seq(left), Self::Seq(right)) => {
                if left.kind != right.kind || left.items.len() != right.items.len() {
                    return Ok(false);
                }
                for (left, right) in left.items.iter().zip(&right.items) {
                    if !left.equals(right, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Dict(left), Self::Dict(right)) => {
                if left.entries.len() != right.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &left.entries {
                    match right.get(key, meter)? {
                        Some(other) if value.equals(&other, meter)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Namespace(left), Self::Namespace(right)) | (Self::Macro(left), Self::Macro(right)) => {
                left == right
            }
            (Self::Function(left), Self::Function(right)) => left == right,
            _ => match (self.as_int(), other.as_int(), self.as_float(), other.as_float()) {
                (Some(left), Some(right), ..) => left == right,
                (_, _, Some(left), Some(right)) => left == right,
                _ => false,
            },
        })
    }

    /// Python's order: nothing for what is neither less, equal nor greater, which is NaN; an error for values of
    /// different kinds.
    pub fn order(&self, other: &Self, meter: &Meter) -> Result<Option<Ordering>, Raise> {
        meter.work(1)?;
        match (self, other) {
            (Self::Str(left), Self::Str(right)) => {
                meter.touch(left.raw().len().min(right.raw().len()))?;
                return Ok(Some(left.as_str().cmp(right.as_str())));
            }
            (Self::Seq(left), Self::Seq(right))
                if left.kind == right.kind && matches!(left.kind, SeqKind::List | SeqKind::Tuple) =>
            {
                for (left, right) in left.items.iter().zip(&right.items) {
                    if !left.equals(right, meter)? {
                        return left.order(right, meter);
                    }
                }
                return Ok(Some(left.items.len().cmp(&right.items.len())));
            }
            _ => {}
        }
        if let (Some(left), Some(right)) = (self.as_int(), other.as_int()) {
            return Ok(Some(left.cmp(&right)));
        }
        if let (Some(left), Some(right)) = (self.as_float(), other.as_float()) {
            return Ok(left.partial_cmp(&right));
        }
        for value in [self, other] {
            if value.is_undefined() {
                return Err(value.undefined_fault());
            }
        }
        let (left, right) = (self.type_name(), other.type_name());
        Err(Raise::new(format!("'{left}' and '{right}' cannot be ordered")))
    }

    /// Python's `in`.
    pub fn contains(&self, item: &Self, meter: &Meter) -> Result<bool, Raise> {
        match self {
            Self::Str(text) => match item {
                Self::Str(part) => {
                    meter.touch(text.raw().len() + part.raw().len())?;
                    Ok(text.as_str().contains(part.as_str()))
                }
                _ => Err(Raise::new(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                ))),
            },
            Self::Seq(seq) => {
                for found in &seq.items {
                    if found.equals(item, meter)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Dict(dict) => match item {
                Self::Dict(_) => Err(Raise::new("unhashable type: 'dict'")),
                Self::Seq(seq) if seq.kind == SeqKind::List => Err(Raise::new("unhashable type: 'list'")),
                _ => Ok(dict.position(item, meter)?.is_some()),
            },
            Self::Undefined(_) => Ok(false),
            _ => Err(Raise::new(format!("argument of type '{}' is not iterable", self.type_name()))),
        }
    }
}

/// What stands beside the keys, in the order of the keys, of which equal ones keep their order, also in reverse.
///
/// A merge sort of our own: one of the standard library may panic where the order is none, and cannot be stopped by an
/// error.
pub(super) fn sorted<T>(
    mut keyed: Vec<(Value, T)>,
    reverse: bool,
    meter: &Meter,
) -> Result<Vec<(Value, T)>, Raise> {
    if keyed.len() < 2 {
        return Ok(keyed);
    }
    let right = keyed.split_off(keyed.len() / 2);
    let (left, right) = (sorted(keyed, reverse, meter)?, sorted(right, reverse, meter)?);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some((left_key, _)), Some((right_key, _))) = (left.peek(), right.peek()) {
        let order =
            left_key.order(right_key, meter)?.ok_or_else(|| Raise::new("NaN has no place in an order"))?;
        let right_first = if reverse { order.is_lt() } else { order.is_gt() };
        merged.extend(if right_first { right.next() } else { left.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}
