//! No function is longer than a screen shows.

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::Finding;
use super::sources::{Sources, for_tests};

/// The lines of a function, from its name to its last brace.
const LINES: usize = 70;

pub(super) fn too_long(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, file) in sources.libraries() {
        Functions { path, found: &mut found }.visit_file(file);
    }
    found
}

struct Functions<'a> {
    path: &'a str,
    found: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn look(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        let lines = last - first + 1;
        if lines > LINES {
            let what = format!("`{}` has {lines} lines, of {LINES}", signature.ident);
            self.found.push(Finding::new("length", self.path, first, what));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.look(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.look(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}
