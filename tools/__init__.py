"""Scripts for developers of lvspec. They are no part of the package that is installed."""
