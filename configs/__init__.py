"""The configuration: schema, loader, validation; and the YAML files."""
