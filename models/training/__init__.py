"""Parts of a model that only training needs: flat parameters and compilation."""
