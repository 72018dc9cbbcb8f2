//! Fuzz targets: everything that a stranger can send, each as a plain function with its invariants.
