//! Tokens to statements and expressions, by recursive descent along Jinja's grammar.
//!
//! Each level of brackets or blocks costs some stack, so [`MAX_NESTING`] bounds them; chains cost none. Tags that would
//! read other files (`include`, `import`, `extends`) are refused by name.

use std::collections::HashSet;

use super::Fault;
use super::ast::{Args, Arith, Compare, Expr, For, Macro, Postfix, Stmt, StmtKind, Takes, Target};
use super::lex::{Token, tokens};

/// The most levels to which brackets and blocks nest. Templates in use need fewer than 20.
const MAX_NESTING: usize = 100;

/// The statements of `source` and its string literals.
pub(super) fn parse(source: &str) -> Result<(Vec<Stmt>, Vec<String>), Fault> {
    let tokens = tokens(source)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        loops: 0,
        in_generation: false,
        literals: Vec::new(),
        seen: Takes::default(),
    };
    let (body, _) = parser.body(&[])?;
    Ok((body, parser.literals))
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
    /// Number of loops around the place that is being read.
    loops: usize,
    in_generation: bool,
    literals: Vec<String>,
    /// The names of extra arguments seen since the innermost macro began.
    seen: Takes,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |&(_, line)| line)
    }

    fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault { line: self.line(), reason: reason.into(), raised: false }
    }

    /// The complaint that something else than the next token should stand here.
    fn expected(&self, what: &str) -> Fault {
        match self.peek() {
            None => self.fault(format!("expected {what}, but the template ends")),
            Some(Token::Name(name)) => self.fault(format!("expected {what}, not `{name}`")),
            Some(Token::Op(op)) => self.fault(format!("expected {what}, not `{op}`")),
            Some(Token::BlockEnd | Token::VarEnd) => self.fault(format!("expected {what}, but the tag ends")),
            Some(token) => self.fault(format!("expected {what}, not {token:?}")),
        }
    }

    fn skip(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn skip_op(&mut self, op: &'static str) -> bool {
        self.skip(&Token::Op(op))
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(found)) if *found == op)
    }

    fn expect_op(&mut self, op: &'static str) -> Result<(), Fault> {
        if self.skip_op(op) { Ok(()) } else { Err(self.expected(&format!("`{op}`"))) }
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if found == name)
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Result<String, Fault> {
        let Some(Token::Name(name)) = self.peek() else { return Err(self.expected("a name")) };
        let name = name.clone();
        self.at += 1;
        Ok(name)
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == MAX_NESTING {
            return Err(self.fault(format!("brackets and blocks nest deeper than {MAX_NESTING} levels")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }
}

/// Statements.
impl Parser {
    /// Statements up to a tag named in `ends`, whose name is taken and given back. Without `ends`, all that is left.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Stmt>, String), Fault> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let Some(token) = self.tokens.get(self.at).map(|(token, _)| token.clone()) else { break };
            self.at += 1;
            let kind = match token {
                Token::Text(text) => StmtKind::Text(text),
                Token::VarBegin => {
                    let expr = self.tuple(true)?;
                    if !self.skip(&Token::VarEnd) {
                        return Err(self.expected("`}}`"));
                    }
                    StmtKind::Emit(expr)
                }
                _ => {
                    let tag = self.name()?;
                    if ends.contains(&tag.as_str()) {
                        return Ok((body, tag));
                    }
                    self.nested(|parser| parser.statement(&tag))?
                }
            };
            body.push(Stmt { line, kind });
        }
        if ends.is_empty() {
            return Ok((body, String::new()));
        }
        Err(self.fault(format!("the template ends before `{{% {} %}}`", ends.join(" %}` or `{% "))))
    }

    fn end_tag(&mut self) -> Result<(), Fault> {
        if self.skip(&Token::BlockEnd) { Ok(()) } else { Err(self.expected("`%}`")) }
    }

    /// The rest of the tag, then statements up to and with the tag `end`.
    fn body_to(&mut self, end: &str) -> Result<Vec<Stmt>, Fault> {
        self.end_tag()?;
        let (body, _) = self.body(&[end])?;
        self.end_tag()?;
        Ok(body)
    }

    fn statement(&mut self, tag: &str) -> Result<StmtKind, Fault> {
        match tag {
            "if" => self.if_(),
            "for" => self.for_(),
            "set" => self.set(),
            "macro" => self.macro_(),
            "call" => self.call_block(),
            "with" => self.with(),
            "generation" => self.generation(),
            "filter" => {
                let filters = self.filters()?;
                Ok(StmtKind::FilterBlock(filters, self.body_to("endfilter")?))
            }
            "break" | "continue" if self.loops > 0 => {
                self.end_tag()?;
                Ok(if tag == "break" { StmtKind::Break } else { StmtKind::Continue })
            }
            "print" => {
                let expr = self.tuple(true)?;
                self.end_tag()?;
                Ok(StmtKind::Emit(expr))
            }
            "break" | "continue" => Err(self.fault(format!("`{tag}` stands outside of a loop"))),
            "include" | "import" | "from" | "extends" | "block" => Err(self.fault(format!(
                "the tag `{tag}` is refused: a chat template is one file and reads no other"
            ))),
            _ => Err(self.fault(format!("the tag `{tag}` is unknown or out of place"))),
        }
    }

    fn if_(&mut self) -> Result<StmtKind, Fault> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false)?;
            self.end_tag()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            match end.as_str() {
                "elif" => {}
                "else" => return Ok(StmtKind::If(branches, self.body_to("endif")?)),
                _ => {
                    self.end_tag()?;
                    return Ok(StmtKind::If(branches, Vec::new()));
                }
            }
        }
    }

    fn for_(&mut self) -> Result<StmtKind, Fault> {
        let target = self.target(false)?;
        if !self.skip_name("in") {
            return Err(self.expected("`in`"));
        }
        let iter = self.tuple(false)?;
        let filter = if self.skip_name("if") { Some(self.expr()?) } else { None };
        if self.is_name("recursive") {
            return Err(self.fault("`recursive` loops are not supported: use a macro"));
        }
        self.end_tag()?;
        self.loops += 1;
        let (body, end) = self.body(&["else", "endfor"])?;
        self.loops -= 1;
        let otherwise = if end == "else" {
            self.body_to("endfor")?
        } else {
            self.end_tag()?;
            Vec::new()
        };
        Ok(StmtKind::For(Box::new(For { target, iter, filter, body, otherwise })))
    }

    /// What is assigned to: names, separated by commas, in brackets or not; with `fields` also `namespace.field`.
    fn target(&mut self, fields: bool) -> Result<Target, Fault> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        while self.is_op("(") || matches!(self.peek(), Some(Token::Name(name)) if name != "in") {
            if self.skip_op("(") {
                targets.push(self.nested(|parser| parser.target(fields))?);
                self.expect_op(")")?;
            } else {
                targets.push(self.target_name(fields)?);
            }
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.pop() {
            None => Err(self.expected("a name to assign to")),
            Some(target) if !is_tuple => Ok(target),
            Some(target) => {
                targets.push(target);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn target_name(&mut self, fields: bool) -> Result<Target, Fault> {
        let name = self.name()?;
        if fields && self.skip_op(".") {
            return Ok(Target::Field(name, self.name()?));
        }
        if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(self.fault(format!("cannot assign to `{name}`")));
        }
        Ok(Target::Name(name))
    }

    fn set(&mut self) -> Result<StmtKind, Fault> {
        let target = self.target(true)?;
        if self.skip_op("=") {
            let value = self.tuple(true)?;
            self.end_tag()?;
            return Ok(StmtKind::Set(target, value));
        }
        let filters = if self.skip_op("|") { self.filters()? } else { Vec::new() };
        Ok(StmtKind::SetBlock(target, filters, self.body_to("endset")?))
    }

    fn generation(&mut self) -> Result<StmtKind, Fault> {
        if std::mem::replace(&mut self.in_generation, true) {
            return Err(self.fault("`generation` stands inside of `generation`"));
        }
        // To `transformers` the body is a block of `call`, so a loop around it cannot be left from inside.
        let loops = std::mem::take(&mut self.loops);
        let body = self.body_to("endgeneration")?;
        self.loops = loops;
        self.in_generation = false;
        Ok(StmtKind::Generation(body))
    }

    fn with(&mut self) -> Result<StmtKind, Fault> {
        let mut values = Vec::new();
        while self.peek() != Some(&Token::BlockEnd) {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target_name(false)?;
            self.expect_op("=")?;
            values.push((target, self.expr()?));
        }
        Ok(StmtKind::With(values, self.body_to("endwith")?))
    }

    fn macro_(&mut self) -> Result<StmtKind, Fault> {
        let name = self.name()?;
        let params = self.params()?;
        Ok(StmtKind::Macro(self.macro_body(name, params, "endmacro")?))
    }

    fn call_block(&mut self) -> Result<StmtKind, Fault> {
        let params = if self.is_op("(") { self.params()? } else { Vec::new() };
        let call = self.expr()?;
        let caller = self.macro_body("caller".to_owned(), params, "endcall")?;
        if !matches!(&call, Expr::Postfix(_, chain) if matches!(chain.last(), Some(Postfix::Call(_)))) {
            return Err(self.fault("`call` needs a call"));
        }
        Ok(StmtKind::CallBlock(caller, call))
    }

    fn macro_body(
        &mut self,
        name: String,
        params: Vec<(String, Option<Expr>)>,
        end: &str,
    ) -> Result<Macro, Fault> {
        let outside = std::mem::take(&mut self.seen);
        let loops = std::mem::take(&mut self.loops);
        let body = self.body_to(end)?;
        self.loops = loops;
        let takes = std::mem::replace(&mut self.seen, outside);
        Ok(Macro { name, params, body, takes })
    }

    fn params(&mut self) -> Result<Vec<(String, Option<Expr>)>, Fault> {
        self.expect_op("(")?;
        let mut params = Vec::new();
        let mut names = HashSet::new();
        let mut has_default = false;
        while !self.skip_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.name()?;
            let default = if self.skip_op("=") { Some(self.expr()?) } else { None };
            if default.is_none() && has_default {
                return Err(
                    self.fault(format!("parameter `{name}` needs a default as those before it have one"))
                );
            }
            has_default = default.is_some();
            if !names.insert(name.clone()) {
                return Err(self.fault(format!("parameter `{name}` comes twice")));
            }
            params.push((name, default));
        }
        Ok(params)
    }

    /// Filters without a value before them, as `{% filter %}` and `{% set %}` take them.
    fn filters(&mut self) -> Result<Vec<Postfix>, Fault> {
        let mut filters = vec![self.filter()?];
        while self.skip_op("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }
}

/// Expressions, from the loosest operator to the tightest.
impl Parser {
    /// An expression, or several with commas: a tuple. Without `ternary`, `if` is left for the caller.
    fn tuple(&mut self, ternary: bool) -> Result<Expr, Fault> {
        let one = |parser: &mut Self| if ternary { parser.expr() } else { parser.nested(Self::or) };
        let first = one(self)?;
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.skip_op(",") {
            if matches!(self.peek(), None | Some(Token::BlockEnd | Token::VarEnd | Token::Op(")"))) {
                break;
            }
            items.push(one(self)?);
        }
        Ok(Expr::Tuple(items))
    }

    fn expr(&mut self) -> Result<Expr, Fault> {
        self.nested(|parser| {
            let value = parser.or()?;
            if !parser.skip_name("if") {
                return Ok(value);
            }
            let condition = parser.or()?;
            let otherwise = if parser.skip_name("else") { Some(parser.expr()?) } else { None };
            let conditional = Expr::If(Box::new((condition, value, otherwise)));
            if parser.is_name("if") {
                return Err(parser.fault("put brackets around one of the two `if`"));
            }
            Ok(conditional)
        })
    }

    /// Operands of `next`'s rank separated by the name `word`.
    fn words(
        &mut self,
        word: &str,
        next: fn(&mut Self) -> Result<Expr, Fault>,
        join: fn(Vec<Expr>) -> Expr,
    ) -> Result<Expr, Fault> {
        let first = next(self)?;
        if !self.is_name(word) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_name(word) {
            operands.push(next(self)?);
        }
        Ok(join(operands))
    }

    fn or(&mut self) -> Result<Expr, Fault> {
        self.words("or", Self::and, Expr::Or)
    }

    fn and(&mut self) -> Result<Expr, Fault> {
        self.words("and", Self::not, Expr::And)
    }

    fn not(&mut self) -> Result<Expr, Fault> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr, Fault> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Op("==")) => Compare::Eq,
                Some(Token::Op("!=")) => Compare::Ne,
                Some(Token::Op("<")) => Compare::Lt,
                Some(Token::Op("<=")) => Compare::Le,
                Some(Token::Op(">")) => Compare::Gt,
                Some(Token::Op(">=")) => Compare::Ge,
                Some(Token::Name(name)) if name == "in" => Compare::In,
                Some(Token::Name(name)) if name == "not" => {
                    let next = self.tokens.get(self.at + 1);
                    if !matches!(next, Some((Token::Name(name), _)) if name == "in") {
                        break;
                    }
                    self.at += 1;
                    Compare::NotIn
                }
                _ => break,
            };
            self.at += 1;
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    /// Operands of `next`'s rank separated by the operators of `table`.
    fn arith(
        &mut self,
        table: &[(&'static str, Arith)],
        next: fn(&mut Self) -> Result<Expr, Fault>,
    ) -> Result<Expr, Fault> {
        let first = next(self)?;
        let mut rest = Vec::new();
        while let Some(&(_, op)) = table.iter().find(|(op, _)| self.is_op(op)) {
            self.at += 1;
            rest.push((op, next(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Arith(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expr, Fault> {
        self.arith(&[("+", Arith::Add), ("-", Arith::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr, Fault> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.skip_op("~") {
            operands.push(self.product()?);
        }
        Ok(Expr::Concat(operands))
    }

    fn product(&mut self) -> Result<Expr, Fault> {
        let table = [("*", Arith::Mul), ("/", Arith::Div), ("//", Arith::FloorDiv), ("%", Arith::Mod)];
        self.arith(&table, Self::power)
    }

    fn power(&mut self) -> Result<Expr, Fault> {
        self.arith(&[("**", Arith::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Result<Expr, Fault> {
        let base = if self.skip_op("-") {
            Expr::Neg(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Pos(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut chain = Vec::new();
        self.postfixes(&mut chain)?;
        if filters {
            self.filters_and_tests(&mut chain)?;
        }
        Ok(if chain.is_empty() { base } else { Expr::Postfix(Box::new(base), chain) })
    }

    /// Filters and tests, and calls of what they give.
    fn filters_and_tests(&mut self, chain: &mut Vec<Postfix>) -> Result<(), Fault> {
        loop {
            if self.skip_op("|") {
                chain.push(self.filter()?);
            } else if self.skip_name("is") {
                chain.push(self.test()?);
            } else if self.is_op("(") {
                chain.push(Postfix::Call(self.args()?));
            } else {
                return Ok(());
            }
        }
    }

    /// Attributes, items and calls, which bind before filters.
    fn postfixes(&mut self, chain: &mut Vec<Postfix>) -> Result<(), Fault> {
        loop {
            if self.skip_op(".") {
                chain.push(match self.peek() {
                    Some(&Token::Int(int)) => {
                        self.at += 1;
                        Postfix::Item(Expr::Int(int))
                    }
                    _ => Postfix::Attr(self.name()?),
                });
            } else if self.skip_op("[") {
                chain.push(self.nested(Self::subscript)?);
                self.expect_op("]")?;
            } else if self.is_op("(") {
                chain.push(Postfix::Call(self.args()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Postfix, Fault> {
        let mut parts = [None, None, None];
        let mut n_colons = 0;
        loop {
            if self.skip_op(":") {
                n_colons += 1;
            } else if self.is_op("]") {
                break;
            } else {
                match parts.get_mut(n_colons) {
                    Some(part @ None) => *part = Some(self.expr()?),
                    _ => return Err(self.expected("`]`")),
                }
            }
        }
        match (n_colons, parts) {
            (0, [Some(item), ..]) => Ok(Postfix::Item(item)),
            (1 | 2, parts) => Ok(Postfix::Slice(Box::new(parts))),
            _ => Err(self.expected("an index")),
        }
    }

    fn filter(&mut self) -> Result<Postfix, Fault> {
        let name = self.name()?;
        let args = if self.is_op("(") { self.args()? } else { Args::default() };
        Ok(Postfix::Filter(name, args))
    }

    fn test(&mut self) -> Result<Postfix, Fault> {
        let negated = self.skip_name("not");
        let name = self.name()?;
        let mut args = Args::default();
        match self.peek() {
            Some(Token::Op("(")) => args = self.args()?,
            Some(Token::Op("[" | "{") | Token::Str(_) | Token::Int(_) | Token::Float(_)) => {
                args.positional.push(self.nested(Self::test_arg)?);
            }
            Some(Token::Name(next)) if !matches!(next.as_str(), "else" | "or" | "and" | "is") => {
                args.positional.push(self.nested(Self::test_arg)?);
            }
            _ => {}
        }
        Ok(Postfix::Test { name, args, negated })
    }

    fn test_arg(&mut self) -> Result<Expr, Fault> {
        let base = self.primary()?;
        let mut chain = Vec::new();
        self.postfixes(&mut chain)?;
        Ok(if chain.is_empty() { base } else { Expr::Postfix(Box::new(base), chain) })
    }

    fn args(&mut self) -> Result<Args, Fault> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut names = HashSet::new();
        let mut first = true;
        while !self.skip_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            let named = matches!(self.tokens.get(self.at + 1), Some((Token::Op("="), _)));
            if self.skip_op("**") {
                args.double_splat = Some(self.expr()?);
            } else if self.skip_op("*") {
                args.splat = Some(self.expr()?);
            } else if named && matches!(self.peek(), Some(Token::Name(_))) {
                let name = self.name()?;
                self.at += 1;
                if !names.insert(name.clone()) {
                    return Err(self.fault(format!("argument `{name}` comes twice")));
                }
                self.literals.push(name);
                let name = self.literals.len() - 1;
                args.named.push((name, self.expr()?));
            } else if args.named.is_empty() && args.double_splat.is_none() {
                args.positional.push(self.expr()?);
            } else {
                return Err(self.fault("an argument without a name follows one with a name"));
            }
        }
        Ok(args)
    }

    fn literal(&mut self, text: String) -> Expr {
        self.literals.push(text);
        Expr::Str(self.literals.len() - 1)
    }

    fn primary(&mut self) -> Result<Expr, Fault> {
        let Some((token, _)) = self.tokens.get(self.at).cloned() else {
            return Err(self.expected("an expression"));
        };
        self.at += 1;
        match token {
            Token::Int(int) => Ok(Expr::Int(int)),
            Token::Float(float) => Ok(Expr::Float(float)),
            Token::Str(mut text) => {
                while let Some(Token::Str(next)) = self.peek() {
                    text.push_str(next);
                    self.at += 1;
                }
                Ok(self.literal(text))
            }
            Token::Name(name) => Ok(self.named(name)),
            Token::Op("(") => self.brackets(),
            Token::Op("[") => Ok(Expr::List(self.items("]", Self::expr)?)),
            Token::Op("{") => Ok(Expr::Dict(self.items("}", |parser| {
                let key = parser.expr()?;
                parser.expect_op(":")?;
                Ok((key, parser.expr()?))
            })?)),
            _ => {
                self.at -= 1;
                Err(self.expected("an expression"))
            }
        }
    }

    fn named(&mut self, name: String) -> Expr {
        match name.as_str() {
            "true" | "True" => return Expr::Bool(true),
            "false" | "False" => return Expr::Bool(false),
            "none" | "None" => return Expr::None,
            "varargs" => self.seen.varargs = true,
            "kwargs" => self.seen.kwargs = true,
            "caller" => self.seen.caller = true,
            _ => {}
        }
        Expr::Name(name)
    }

    fn brackets(&mut self) -> Result<Expr, Fault> {
        if self.skip_op(")") {
            return Ok(Expr::Tuple(Vec::new()));
        }
        let inner = self.tuple(true)?;
        self.expect_op(")")?;
        Ok(inner)
    }

    /// Items separated by commas, up to `close`.
    fn items<T>(
        &mut self,
        close: &'static str,
        item: impl Fn(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut items = Vec::new();
        while !self.skip_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
}
