//! Fuzz tests: spoilt inputs, the same in every run, for readers that stand against clients and
//! upstreams. A share of a million here; 20 million each with `./soak fuzz`.

mod mutate;
mod readers;
