"""What a spoken reply is: the nouns that every other room uses with the same meaning."""
