"""What is done to a model: a recipe of the plan becomes a direction, and a direction becomes edits."""
