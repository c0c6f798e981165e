"""Token ids to rows: text is cut where a row ends, examples stay whole."""
