//! Bifold.
