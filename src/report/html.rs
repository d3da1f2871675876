//! The page: a summary put into a document that draws it.

use super::Model;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/page.js");

/// One self-contained page. Its data stand in `<script id="run" type="application/json">`.
pub fn html(model: &Model) -> String {
    // Inside a script element only "</" and "<!--" could end or change it.
    let data = model.json().to_string().replace('<', "\\u003c");
    let mut page = PAGE.to_owned();
    // The data last: what a guest's command line says is never taken for a place of the page.
    for (place, part) in [("/*STYLE*/", STYLE), ("/*SCRIPT*/", SCRIPT), ("/*DATA*/", data.as_str())] {
        page = page.replacen(place, part, 1);
    }
    page
}
