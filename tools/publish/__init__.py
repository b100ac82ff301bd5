"""All that is published, made from the run files under results/ by one command: `python -m tools.publish`."""
