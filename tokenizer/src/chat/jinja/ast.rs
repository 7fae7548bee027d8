//! What a template is once it has been read: statements and expressions.
//!
//! Chains (`a + b + c`, `a.b.c`, `x|f|g`) are lists and not left-deep trees, so the depth of a tree is the depth to
//! which its source nests, which the parser bounds; nothing here can make a walk overflow the stack.

/// A statement with the line that it begins on.
#[derive(Debug)]
pub(super) struct Stmt {
    pub line: usize,
    pub kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    /// Text between tags.
    Text(String),
    /// `{{ expr }}`.
    Emit(Expr),
    /// The condition and body of each `if` and `elif`, then the body of `else`.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Box<For>),
    Set(Target, Expr),
    /// `{% set x %}…{% endset %}`, with the filters that follow the name.
    SetBlock(Target, Vec<Postfix>, Vec<Stmt>),
    Macro(Macro),
    /// `{% call(args) f() %}…{% endcall %}`.
    CallBlock(Macro, Expr),
    FilterBlock(Vec<Postfix>, Vec<Stmt>),
    With(Vec<(Target, Expr)>, Vec<Stmt>),
    /// `{% generation %}…{% endgeneration %}`: what the assistant says.
    Generation(Vec<Stmt>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub iter: Expr,
    pub filter: Option<Expr>,
    pub body: Vec<Stmt>,
    pub otherwise: Vec<Stmt>,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(String),
    /// A field of a namespace.
    Field(String, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Macro {
    pub name: String,
    /// Parameters with their defaults.
    pub params: Vec<(String, Option<Expr>)>,
    pub body: Vec<Stmt>,
    /// Whether the body speaks of `varargs`, `kwargs` and `caller`: only then does the macro take them.
    pub takes: Takes,
}

/// The extra arguments that a macro takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Takes {
    pub varargs: bool,
    pub kwargs: bool,
    pub caller: bool,
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    /// A position in the template's list of string literals.
    Str(usize),
    Name(String),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// Operators of one rank, applied from left to right.
    Arith(Box<Expr>, Vec<(Arith, Expr)>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    /// Condition, value, and the value otherwise; undefined without one.
    If(Box<(Expr, Expr, Option<Expr>)>),
    Postfix(Box<Expr>, Vec<Postfix>),
}

#[derive(Debug)]
pub(super) enum Postfix {
    /// `.name`
    Attr(String),
    /// `[expr]`
    Item(Expr),
    /// `[start:stop:step]`
    Slice(Box<[Option<Expr>; 3]>),
    Call(Args),
    /// `|name(args)`
    Filter(String, Args),
    /// `is name(args)`, or `is not`.
    Test {
        name: String,
        args: Args,
        negated: bool,
    },
}

#[derive(Debug, Default)]
pub(super) struct Args {
    pub positional: Vec<Expr>,
    /// Names, by their positions in the template's list of string literals.
    pub named: Vec<(usize, Expr)>,
    /// `*expr`
    pub splat: Option<Expr>,
    /// `**expr`
    pub double_splat: Option<Expr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}
