//! What is added to logits and taken from them before they become probabilities.

use std::collections::HashMap;

/// The value of a bias that forbids its token.
const FORBIDS: f32 = -100.0;

/// Adds to the logits of some ids; -100 makes the token impossible, however probable it was.
///
/// OpenAI's API says that the effect of -100 "should result in a ban": added to the logits of a model that is certain it
/// would not.
pub fn bias(logits: &mut [f32], biases: &[(u32, f32)]) {
    for &(id, bias) in biases {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        *logit = if bias <= FORBIDS { f32::NEG_INFINITY } else { *logit + bias };
    }
}

/// Divides the logits of tokens seen by `penalty` if they are positive, else multiplies them, once a token.
pub fn repetition(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut done = vec![false; logits.len()];
    for &id in seen {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if !std::mem::replace(&mut done[id as usize], true) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// Subtracts `presence` from the logits of tokens that were picked, and `frequency` for each time (OpenAI's API).
pub fn counted(logits: &mut [f32], counts: &HashMap<u32, u32>, presence: f32, frequency: f32) {
    for (&id, &n) in counts {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= presence + frequency * n as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_penalty_acts_once_per_token_and_by_sign() {
        let mut l = vec![2.0, -2.0, 1.0, -1.0];
        repetition(&mut l, &[0, 0, 1, 99], 2.0);
        assert_eq!(l, [1.0, -4.0, 1.0, -1.0]);
    }

    #[test]
    fn a_bias_is_added_and_minus_100_forbids() {
        let mut l = vec![1.0, 200.0, 3.0];
        bias(&mut l, &[(0, -99.0), (1, -100.0), (2, 0.5), (99, 1.0)]);
        assert_eq!(l, [-98.0, f32::NEG_INFINITY, 3.5]);
    }

    #[test]
    fn counts_weigh_as_often_as_they_are() {
        let mut l = vec![1.0; 3];
        counted(&mut l, &HashMap::from([(0, 1), (2, 3), (99, 1)]), 0.5, 0.25);
        assert_eq!(l, [0.25, 1.0, -0.25]);
    }
}
