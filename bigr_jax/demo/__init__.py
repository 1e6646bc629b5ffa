"""A page of the browser in which a trained BiGR draws and edits; its server is this machine."""
