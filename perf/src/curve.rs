//! Curves in reports, which the page draws: percentiles of a latency.

use crate::report::percentile_ms;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Dense where a tail begins.
const PERCENTILES: [f64; 17] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.975, 99.99, 99.999, 100.0];

/// So many percent were as fast or faster.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) percentile: f64,
    pub(crate) ms: f64,
}

/// As far as there are values enough to tell one percentile from the next; empty of nothing.
pub(crate) fn latency_curve(latency_us: &Histogram<u64>) -> Vec<Point> {
    let count = latency_us.len() as f64;
    let telling = |percentile: f64| percentile == 100.0 || (100.0 - percentile) / 100.0 * count >= 0.999;
    let point = |percentile: f64| Point { percentile, ms: percentile_ms(latency_us, percentile) };
    PERCENTILES.into_iter().filter(|percentile| count > 0.0 && telling(*percentile)).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram;

    #[test]
    fn a_curve_ends_where_its_values_do() {
        let mut latency = histogram();
        assert_eq!(latency_curve(&latency), []);
        (1..=1_000).for_each(|ms| latency.record(ms * 1_000).unwrap());
        let curve = latency_curve(&latency);
        let percentiles: Vec<f64> = curve.iter().map(|point| point.percentile).collect();
        assert_eq!(percentiles[10..], [99.75, 99.9, 100.0], "one in ten thousand says nothing of a thousand");
        assert!(curve.is_sorted_by_key(|point| point.ms) && (curve[3].ms - 500.0).abs() < 1.0);
    }
}
