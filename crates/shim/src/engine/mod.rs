//! The engine: what all doors are made of. One thread, no helper threads, every handle `Send`.
