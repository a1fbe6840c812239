"""Reference trainers: they import `warehouse` alone, as any modeler does, and so prove what a release promises."""
