//! Splitting a dispatch over elements into parts, each of which the device takes: no binding too long, no dispatch of too many
//! workgroups, every part's bytes starting where a binding may.

use crate::error::RunError;

/// Elements bound to a binding.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Elements {
    pub(crate) binding: u32,
    /// Bytes of one.
    pub(crate) stride: u64,
    /// The most bytes that may be bound at a time.
    pub(crate) limit: u64,
    /// Where a part may start.
    pub(crate) alignment: u64,
}

/// How many elements a part has, at most: all but the last have so many.
pub(crate) fn part(group_size: u32, groups_max: u32, bound: &[Elements]) -> Result<u64, RunError> {
    let group_size = u64::from(group_size.max(1));
    // A part begins with a workgroup of its own, and where each binding may begin.
    let mut unit = group_size;
    let mut most = (u64::from(groups_max) * group_size).min(u64::from(u32::MAX));
    for elements in bound {
        let &Elements { binding, stride, limit, alignment } = elements;
        if stride == 0 || !stride.is_multiple_of(4) {
            return Err(RunError::Stride { binding, stride, limit, alignment });
        }
        unit = lcm(unit, alignment / gcd(stride, alignment));
        most = most.min(limit / stride);
    }
    if let Some(tightest) = bound.iter().min_by_key(|elements| elements.limit / elements.stride)
        && most < unit
    {
        let &Elements { binding, stride, limit, alignment } = tightest;
        return Err(RunError::Stride { binding, stride, limit, alignment });
    }
    Ok(most - most % unit)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    a / gcd(a, b) * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(stride: u64, limit: u64) -> Elements {
        Elements { binding: 0, stride, limit, alignment: 16 }
    }

    #[test]
    fn a_part_fits_every_limit_and_starts_where_it_may() {
        for group_size in [1, 3, 64, 1000] {
            for groups_max in [1, 65535] {
                for strides in [&[4][..], &[8, 4], &[12, 20], &[4096], &[16, 48, 4]] {
                    let bound: Vec<_> = strides.iter().map(|&stride| elements(stride, 1 << 27)).collect();
                    let Ok(part) = part(group_size, groups_max, &bound) else {
                        // A workgroup's elements do not start at a multiple of 16, and one is all there may be.
                        assert_eq!(groups_max, 1);
                        continue;
                    };
                    assert!(part > 0 && part.is_multiple_of(u64::from(group_size)));
                    assert!(part / u64::from(group_size) <= u64::from(groups_max));
                    for &stride in strides {
                        assert!(part * stride <= 1 << 27 && (part * stride).is_multiple_of(16), "{part} {stride}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_no_part_could_hold_is_refused() {
        assert!(matches!(part(64, 65535, &[elements(0, 1 << 27)]), Err(RunError::Stride { stride: 0, .. })));
        assert!(matches!(part(64, 65535, &[elements(6, 1 << 27)]), Err(RunError::Stride { stride: 6, .. })));
        assert!(matches!(part(64, 65535, &[elements(1 << 22, 1 << 27)]), Err(RunError::Stride { .. })));
        assert_eq!(part(64, 65535, &[elements(1 << 21, 1 << 27)]).unwrap(), 64);
    }
}
