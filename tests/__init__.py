"""A package, so that a folder of tests named like a package of the project never shadows it."""
