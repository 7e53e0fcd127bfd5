"""Export as remote code: transformers' classes around archsearch's own model, in a folder that needs neither."""
