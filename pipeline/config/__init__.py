"""Every block of the config file, its loading, and its error messages."""
