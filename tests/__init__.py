"""A package and not only a folder: another `tests` further down the path would come first otherwise."""
