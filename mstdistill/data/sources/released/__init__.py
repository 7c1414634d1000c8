"""The paper's authors' own preprocessed files, read as they hand them out."""
