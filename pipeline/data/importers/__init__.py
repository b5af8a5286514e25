"""Turn published data sets and tables into contract rows."""
