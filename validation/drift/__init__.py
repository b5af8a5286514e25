"""Profile accepted rows and compare profiles."""
