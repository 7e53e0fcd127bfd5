"""Export as remote code: transformers' classes around archsearch's model, and the source files they need."""
