"""A regular package, so that no installed package that brings a `tests` folder of its own takes its place."""
