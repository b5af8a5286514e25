"""What only training needs of a model: flat parameters and compilation."""
