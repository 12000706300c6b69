//! Health rules: asked after a release serves and all through its watch.
