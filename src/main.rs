//! The `bifold` command.
fn main(){}
