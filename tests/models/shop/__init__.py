"""The synthetic world of the demo models: shops, what customers ask them and what they answer."""
