"""What experiments share: `suite` runs them, `datasets` reads what they are run on."""
