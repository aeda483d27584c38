//! The querier: answers the Tempo and Jaeger APIs from blocks and live data.
