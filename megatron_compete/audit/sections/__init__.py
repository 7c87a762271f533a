"""The sections of an audit's page, by what they speak of."""
