//! The attribute `#[stepwell::task]`. Use the attribute through the `stepwell` crate, which
//! documents it.

#![forbid(unsafe_code)]

mod manifest;

use proc_macro::TokenStream;
use proc_macro2::{Span, TokenStream as Tokens};
use quote::{format_ident, quote};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{Error, FnArg, Ident, ItemFn, LitStr, PatType, ReturnType, Type};

/// Turns an `async fn` into a task type. The `stepwell` crate documents the attribute.
#[proc_macro_attribute]
pub fn task(arguments: TokenStream, function: TokenStream) -> TokenStream {
    expand(arguments.into(), function.into()).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(arguments: Tokens, function: Tokens) -> Result<Tokens, Error> {
    let function: ItemFn = syn::parse2(function)?;
    let (signature, visibility) = (&function.sig, &function.vis);
    let ident = &signature.ident;
    if signature.asyncness.is_none() {
        return Err(Error::new(signature.fn_token.span(), "a task is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        let message =
            "a task cannot be generic: it is found by its name, which stands for one type";
        return Err(Error::new(signature.generics.span(), message));
    }
    let name = task_name(arguments, ident)?;
    let (parameters, context) = parameters(&function)?;
    let ReturnType::Type(_, returned) = &signature.output else {
        return Err(Error::new(signature.span(), "a task returns a `TaskResult<…>`"));
    };
    let stepwell = stepwell();
    let documentation = function.attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
    let arguments: Vec<_> =
        (0..parameters.len()).map(|index| format_ident!("parameter_{index}")).collect();
    // A single parameter is the task's parameters; none or several parameters become a tuple.
    let (params, pattern) = match (parameters.as_slice(), arguments.as_slice()) {
        ([parameter], [argument]) => (quote!(#parameter), quote!(#argument)),
        _ => (quote!((#(#parameters),*)), quote!((#(#arguments),*))),
    };
    let (context, pass_context) =
        if context { (quote!(context), Some(quote!(context))) } else { (quote!(_context), None) };
    Ok(quote! {
        #function

        #(#documentation)*
        #[allow(non_camel_case_types)]
        #visibility struct #ident {}

        #[#stepwell::async_trait]
        impl #stepwell::Task for #ident {
            const NAME: &'static str = #name;
            type Params = #params;
            type Output = <#returned as #stepwell::macro_support::Returned>::Output;

            async fn run(
                #pattern: Self::Params,
                #context: #stepwell::TaskContext,
            ) -> #stepwell::TaskResult<Self::Output> {
                #ident(#(#arguments,)* #pass_context).await
            }
        }
    })
}

/// Returns the value of `name = "…"`, or the function's own name.
fn task_name(arguments: Tokens, ident: &Ident) -> Result<LitStr, Error> {
    let mut name = None;
    let parser = syn::meta::parser(|meta| {
        if !meta.path.is_ident("name") {
            return Err(meta.error("the only argument is `name = \"…\"`"));
        }
        let literal: LitStr = meta.value()?.parse()?;
        if literal.value().is_empty() {
            return Err(Error::new(literal.span(), "a task's name must not be empty"));
        }
        name = Some(literal);
        Ok(())
    });
    parser.parse2(arguments)?;
    Ok(name.unwrap_or_else(|| LitStr::new(&ident.to_string(), ident.span())))
}

/// Returns the types of the parameters, and whether a `TaskContext` comes last.
fn parameters(function: &ItemFn) -> Result<(Vec<Type>, bool), Error> {
    let mut types = Vec::new();
    for input in &function.sig.inputs {
        match input {
            FnArg::Typed(PatType { ty, .. }) => match &**ty {
                Type::Reference(reference) => {
                    let message = "a task's parameters are stored, so they cannot be borrowed: \
                                   take an owned value";
                    return Err(Error::new(reference.span(), message));
                }
                ty => types.push(ty.clone()),
            },
            FnArg::Receiver(receiver) => {
                return Err(Error::new(
                    receiver.span(),
                    "a task is a free function, without `self`",
                ));
            }
        }
    }
    let is_context = |ty: &Type| {
        let Type::Path(path) = ty else { return false };
        path.path.segments.last().is_some_and(|last| last.ident == "TaskContext")
    };
    let context = types.last().is_some_and(is_context);
    if context {
        types.pop();
    }
    if let Some(misplaced) = types.iter().find(|ty| is_context(ty)) {
        return Err(Error::new(misplaced.span(), "the `TaskContext` is the last parameter"));
    }
    Ok((types, context))
}

/// Returns the path of the `stepwell` crate, by whatever name the user imports it.
fn stepwell() -> Tokens {
    // The crate itself and the examples of its documentation have the default name.
    let ident = Ident::new(&manifest::name_of_stepwell(), Span::call_site());
    quote!(::#ident)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(arguments: Tokens, function: Tokens) -> String {
        expand(arguments, function).map(|tokens| tokens.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn functions_that_cannot_be_tasks_are_refused_with_a_reason() {
        let refused = [
            (
                quote!(),
                quote!(
                    fn f(n: u32) -> TaskResult<()> {}
                ),
                "a task is an `async fn`",
            ),
            (
                quote!(),
                quote!(
                    async fn f(text: &str) -> TaskResult<()> {}
                ),
                "cannot be borrowed: take an owned value",
            ),
            (
                quote!(),
                quote!(
                    async fn f(&self) -> TaskResult<()> {}
                ),
                "a free function, without `self`",
            ),
            (
                quote!(),
                quote!(
                    async fn f<T>(n: T) -> TaskResult<()> {}
                ),
                "a task cannot be generic",
            ),
            (
                quote!(),
                quote!(
                    async fn f(n: u32) {}
                ),
                "a task returns a `TaskResult<…>`",
            ),
            (
                quote!(),
                quote!(
                    async fn f(ctx: stepwell::TaskContext, n: u32) -> TaskResult<()> {}
                ),
                "the `TaskContext` is the last parameter",
            ),
            (
                quote!(queue = "a"),
                quote!(
                    async fn f() -> TaskResult<()> {}
                ),
                "the only argument is `name = \"…\"`",
            ),
            (
                quote!(name = ""),
                quote!(
                    async fn f() -> TaskResult<()> {}
                ),
                "a task's name must not be empty",
            ),
        ];
        for (arguments, function, reason) in refused {
            let error = error(arguments, function);
            assert!(error.contains(reason), "{error}");
        }
        assert!(
            expand(
                quote!(),
                quote!(
                    struct NoFunction;
                )
            )
            .is_err()
        );
    }
}
