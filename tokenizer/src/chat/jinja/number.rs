//! Arithmetic with Python's results: whole numbers stay whole, and what overflows is an error.

use std::cmp::Ordering;

use super::Raise;
use super::ast::Arith;
use super::value::Value;

/// Python's unary `-`.
pub(super) fn negate(value: &Value) -> Result<Value, Raise> {
    let overflow = || Raise::new("the integer is too large");
    match (value.as_int(), value) {
        (Some(int), _) => Ok(Value::Int(int.checked_neg().ok_or_else(overflow)?)),
        (None, Value::Float(float)) => Ok(Value::Float(-float)),
        (None, Value::Undefined(_)) => Err(value.undefined_fault()),
        _ => Err(Raise::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
    }
}

/// Arithmetic as Python does it: `/` gives a float, `//` and `%` round towards minus infinity.
pub(super) fn numbers(op: Arith, left: &Value, right: &Value) -> Result<Value, Raise> {
    for value in [left, right] {
        if value.is_undefined() {
            return Err(value.undefined_fault());
        }
    }
    let zero = || Raise::new("division by zero");
    if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
        let int = match op {
            Arith::Add => left.checked_add(right),
            Arith::Sub => left.checked_sub(right),
            Arith::Mul => left.checked_mul(right),
            Arith::Div if right == 0 => return Err(zero()),
            Arith::Div => return Ok(Value::Float(left as f64 / right as f64)),
            Arith::FloorDiv | Arith::Mod if right == 0 => return Err(zero()),
            Arith::FloorDiv => {
                let inexact = left.checked_rem(right).is_some_and(|rem| rem != 0);
                let down = i128::from(inexact && ((left < 0) != (right < 0)));
                left.checked_div(right).and_then(|quotient| quotient.checked_sub(down))
            }
            Arith::Mod => left
                .checked_rem(right)
                .map(|rem| if rem != 0 && ((rem < 0) != (right < 0)) { rem + right } else { rem }),
            Arith::Pow if right < 0 => return power(left as f64, right as f64),
            Arith::Pow => u32::try_from(right).ok().and_then(|power| left.checked_pow(power)),
        };
        return int.map(Value::Int).ok_or_else(|| Raise::new("the integer is too large"));
    }
    let (Some(a), Some(b)) = (left.as_float(), right.as_float()) else {
        let (left, right) = (left.type_name(), right.type_name());
        return Err(Raise::new(format!("unsupported operand types for {op:?}: '{left}' and '{right}'")));
    };
    if b == 0.0 && matches!(op, Arith::Div | Arith::FloorDiv | Arith::Mod) {
        return Err(zero());
    }
    Ok(Value::Float(match op {
        Arith::Add => a + b,
        Arith::Sub => a - b,
        Arith::Mul => a * b,
        Arith::Div => a / b,
        Arith::FloorDiv => div_mod(a, b).0,
        Arith::Mod => div_mod(a, b).1,
        Arith::Pow => return power(a, b),
    }))
}

/// `a // b` and `a % b`, as CPython computes them: from the exact remainder, for `a / b` may round up to a whole number.
fn div_mod(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0f64.copysign(b);
    } else if (rest < 0.0) != (b < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return (0f64.copysign(a / b), rest);
    }
    let floor = quotient.floor();
    (if quotient - floor > 0.5 { floor + 1.0 } else { floor }, rest)
}

fn power(a: f64, b: f64) -> Result<Value, Raise> {
    if a == 0.0 && b < 0.0 {
        return Err(Raise::new("0.0 cannot be raised to a negative power"));
    }
    let power = a.powf(b);
    let in_range = power.is_finite() || !(a.is_finite() && b.is_finite());
    if in_range { Ok(Value::Float(power)) } else { Err(Raise::new("the power is too large or not real")) }
}

/// Python's `round`: to the nearest, of two equally near to the even one.
pub(super) fn round(value: &Value, float: f64, places: i32) -> Result<Value, Raise> {
    if let Ok(places) = usize::try_from(places) {
        let rounded = || format!("{float:.places$}").parse().unwrap_or(float);
        return Ok(if value.as_int().is_some() { value.clone() } else { Value::Float(rounded()) });
    }
    let large = || Raise::new(format!("`round` of {float} to {places} places is not supported"));
    let step = 10i128.checked_pow(places.unsigned_abs().saturating_add(1)).ok_or_else(large)? / 10;
    let whole = match value.as_int() {
        Some(int) => int,
        None if float.abs() < 1e30 => float.floor() as i128,
        None => return Err(large()),
    };
    let (below, rest) = (whole.div_euclid(step), whole.rem_euclid(step));
    let past_half = match (2 * rest).cmp(&step) {
        Ordering::Equal => (value.as_int().is_none() && float.fract() != 0.0) || below % 2 != 0,
        order => order.is_gt(),
    };
    let rounded = (below + i128::from(past_half)).checked_mul(step).ok_or_else(large)?;
    Ok(match value.as_int() {
        Some(_) => Value::Int(rounded),
        None => Value::Float((rounded as f64).copysign(float)),
    })
}
