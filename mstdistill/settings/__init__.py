"""Every setting explained, from the models themselves: lists, a schema, recipes to start from, completion."""
