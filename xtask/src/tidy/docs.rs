//! A summary names its item, or says what that does.

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::Finding;
use super::sources::{Sources, for_tests};

/// Words with which a sentence begins that is no sentence, or that needs another one to be
/// understood.
const NOT_FIRST: [&str; 18] = [
    "What", "How", "When", "Whether", "Why", "Where", "Who", "Which", "Whoever", "Whatever",
    "That", "Those", "These", "It", "They", "As", "Of", "For",
];

pub(super) fn summaries(sources: &Sources) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, file) in sources.libraries() {
        let mut docs = Docs { path, found: &mut found };
        docs.look(&file.attrs);
        docs.visit_file(file);
    }
    found
}

struct Docs<'a> {
    path: &'a str,
    found: &'a mut Vec<Finding>,
}

impl Docs<'_> {
    /// Looks at the first line of what the attributes document.
    fn look(&mut self, attributes: &[syn::Attribute]) {
        let Some(doc) = attributes.iter().find(|attribute| attribute.path().is_ident("doc")) else {
            return;
        };
        let syn::Meta::NameValue(pair) = &doc.meta else { return };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else {
            return;
        };
        let text = text.value();
        let first = text.split_whitespace().next().unwrap_or_default();
        if NOT_FIRST.contains(&first) {
            let what = format!(
                "a summary begins with a verb, or names its item; this one begins with \"{first}\""
            );
            self.found.push(Finding::new("summary", self.path, doc.span().start().line, what));
        }
    }
}

macro_rules! look {
    ($($visit:ident: $item:ident),*) => {$(
        fn $visit(&mut self, item: &'ast syn::$item) {
            if !for_tests(&item.attrs) {
                self.look(&item.attrs);
                visit::$visit(self, item);
            }
        }
    )*};
}

impl<'ast> Visit<'ast> for Docs<'_> {
    look! {
        visit_item_mod: ItemMod, visit_item_fn: ItemFn, visit_item_struct: ItemStruct,
        visit_item_enum: ItemEnum, visit_item_trait: ItemTrait, visit_item_type: ItemType,
        visit_item_const: ItemConst, visit_item_macro: ItemMacro, visit_item_impl: ItemImpl,
        visit_impl_item_fn: ImplItemFn, visit_trait_item_fn: TraitItemFn,
        visit_trait_item_type: TraitItemType, visit_field: Field, visit_variant: Variant
    }
}
