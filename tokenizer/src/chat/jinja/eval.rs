//! Walks statements and expressions.
//!
//! Scopes follow Jinja's: `if` has none, each turn of a loop, each macro, `with`, `call`, `filter` and block of `set` has
//! its own, and what is set in one is gone at its end. A macro sees the scope that it was defined in as it stands when
//! the macro is called.

use std::cmp::Ordering;
use std::ops::Range;
use std::rc::Rc;

use super::ast::{Arith, Compare, Expr, For, Macro, Postfix, Stmt, StmtKind, Target};
use super::call::Given;
use super::number::{negate, numbers};
use super::value::{Buf, Loop, Meter, Seq, SeqKind, Str, Value};
use super::{FUEL, FUEL_PER_BYTE, Fault, Globals, HELD_BYTES, OUTPUT_BYTES, Output, Raise, text};

/// The most calls of macros inside calls of macros. Templates in use need fewer than 20.
pub(super) const MAX_CALLS: usize = 60;
/// The most levels of expressions and statements, over all calls.
const MAX_LEVELS: usize = 1500;

/// Renders `body`.
pub(super) fn render(body: &[Stmt], literals: &[String], globals: &Globals<'_>) -> Result<Output, Fault> {
    let meter = Meter::new(globals.marks.clone());
    let mut interp = Interp {
        literals: Vec::with_capacity(literals.len()),
        meter: Rc::clone(&meter),
        scopes: vec![Scope::default()],
        scope: 0,
        macros: Vec::new(),
        namespaces: Vec::new(),
        outputs: vec![String::new()],
        n_emitted: 0,
        generated: Vec::new(),
        unmarkable: None,
        line: 1,
        level: 0,
        n_calls: 0,
        n_loops: 0,
        now: globals.now,
    };
    match interp.run(body, literals, globals) {
        Ok(output) => Ok(output),
        Err(Raise { reason, raised }) => Err(Fault { line: interp.line, reason, raised }),
    }
}

/// How a statement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

#[derive(Default)]
struct Scope<'t> {
    vars: Vec<(&'t str, Value)>,
    /// The scope around it.
    parent: usize,
}

pub(super) struct Interp<'t> {
    literals: Vec<Value>,
    pub(super) meter: Rc<Meter>,
    /// The first is the template's own.
    scopes: Vec<Scope<'t>>,
    /// The innermost scope that names are looked up in.
    scope: usize,
    macros: Vec<(&'t Macro, usize)>,
    pub(super) namespaces: Vec<Vec<(Rc<Str>, Value)>>,
    /// The last takes what is printed; those before it wait for a macro or block to end.
    outputs: Vec<String>,
    /// Bytes in all `outputs`.
    n_emitted: usize,
    generated: Vec<Range<usize>>,
    unmarkable: Option<usize>,
    line: usize,
    level: usize,
    n_calls: usize,
    n_loops: usize,
    pub(super) now: i64,
}

impl<'t> Interp<'t> {
    fn run(&mut self, body: &'t [Stmt], literals: &[String], globals: &Globals<'t>) -> Result<Output, Raise> {
        for (name, token) in &globals.tokens {
            let value = self.meter.str(*token)?;
            self.assign(name, value)?;
        }
        for (name, json) in &globals.values {
            let value = self.meter.json(json)?;
            self.assign(name, value)?;
        }
        let n_input_bytes = self.meter.live();
        for text in literals {
            self.literals.push(self.meter.str(text.as_str())?);
        }
        let fuel = FUEL.saturating_add((n_input_bytes as u64).saturating_mul(FUEL_PER_BYTE));
        self.meter.bound(HELD_BYTES + n_input_bytes.saturating_mul(2), globals.fuel.unwrap_or(fuel));
        // What it took to read the inputs.
        self.meter.touch(n_input_bytes)?;
        self.body(body)?;
        let text = self.outputs.pop().unwrap_or_default();
        let (generated, unmarkable) = (std::mem::take(&mut self.generated), self.unmarkable);
        Ok(Output { text, generated, unmarkable, fuel_left: self.meter.fuel() })
    }

    /// Runs `work` one level deeper.
    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Raise>) -> Result<T, Raise> {
        self.meter.work(1)?;
        if self.level == MAX_LEVELS {
            return Err(Raise::new(format!("the template nests deeper than {MAX_LEVELS} levels as it runs")));
        }
        self.level += 1;
        let done = work(self);
        self.level -= 1;
        done
    }

    fn assign(&mut self, name: &'t str, value: Value) -> Result<(), Raise> {
        self.pay_for_names(self.scopes.get(self.scope).map_or(0, |scope| scope.vars.len()), name)?;
        let Some(scope) = self.scopes.get_mut(self.scope) else { return Ok(()) };
        match scope.vars.iter_mut().find(|(found, _)| *found == name) {
            Some((_, old)) => *old = value,
            None => scope.vars.push((name, value)),
        }
        Ok(())
    }

    fn lookup(&self, name: &str) -> Result<Option<Value>, Raise> {
        let mut at = self.scope;
        loop {
            let Some(scope) = self.scopes.get(at) else { return Ok(None) };
            self.pay_for_names(1 + scope.vars.len(), name)?;
            if let Some((_, value)) = scope.vars.iter().find(|(found, _)| *found == name) {
                return Ok(Some(value.clone()));
            }
            if at == 0 {
                return Ok(None);
            }
            at = scope.parent;
        }
    }

    /// Pays for comparing `name` with `n_names` others one by one, which is the fastest for the few that templates have.
    fn pay_for_names(&self, n_names: usize, name: &str) -> Result<(), Raise> {
        self.meter.work(n_names.saturating_mul(16 + name.len()) / 256)
    }

    /// Runs `work` in a new scope inside `parent`.
    fn scoped<T>(
        &mut self,
        parent: usize,
        work: impl FnOnce(&mut Self) -> Result<T, Raise>,
    ) -> Result<T, Raise> {
        let outside = std::mem::replace(&mut self.scope, self.scopes.len());
        let n_scopes = self.scopes.len();
        self.scopes.push(Scope { vars: Vec::new(), parent: parent.min(n_scopes.saturating_sub(1)) });
        let done = work(self);
        self.scopes.truncate(n_scopes);
        self.scope = outside;
        done
    }

    fn emit(&mut self, text: &str) -> Result<(), Raise> {
        self.n_emitted = self.n_emitted.saturating_add(text.len());
        if self.n_emitted > OUTPUT_BYTES {
            return Err(Raise::new(format!("the output has more than {OUTPUT_BYTES} bytes")));
        }
        self.meter.touch(text.len())?;
        if let Some(output) = self.outputs.last_mut() {
            output.push_str(text);
        }
        Ok(())
    }

    /// What `work` prints, as a string, and how it ends.
    fn captured(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<Flow, Raise>,
    ) -> Result<(Value, Flow), Raise> {
        self.outputs.push(String::new());
        let done = work(self);
        let text = self.outputs.pop().unwrap_or_default();
        self.n_emitted = self.n_emitted.saturating_sub(text.len());
        let flow = done?;
        Ok((self.meter.str(text)?, flow))
    }
}

/// Statements.
impl<'t> Interp<'t> {
    fn body(&mut self, body: &'t [Stmt]) -> Result<Flow, Raise> {
        for stmt in body {
            self.line = stmt.line;
            let flow = self.deeper(|interp| interp.stmt(&stmt.kind))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn stmt(&mut self, stmt: &'t StmtKind) -> Result<Flow, Raise> {
        match stmt {
            StmtKind::Text(text) => self.emit(text)?,
            StmtKind::Emit(expr) => {
                let value = self.eval(expr)?;
                self.emit_value(&value)?;
            }
            StmtKind::If(branches, otherwise) => return self.if_(branches, otherwise),
            StmtKind::For(each) => return self.for_(each),
            StmtKind::Set(target, expr) => {
                let value = self.eval(expr)?;
                self.store(target, value)?;
            }
            StmtKind::SetBlock(target, filters, body) => {
                let (mut value, flow) = self.block(body)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                for filter in filters {
                    value = self.postfix(value, filter)?;
                }
                self.store(target, value)?;
            }
            StmtKind::FilterBlock(filters, body) => {
                let (mut value, flow) = self.block(body)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                for filter in filters {
                    value = self.postfix(value, filter)?;
                }
                self.emit_value(&value)?;
            }
            StmtKind::Macro(def) => {
                let value = self.define(def);
                self.assign(&def.name, value)?;
            }
            StmtKind::CallBlock(def, call) => self.call_block(def, call)?,
            StmtKind::With(values, body) => {
                let outside = self.scope;
                let values: Result<Vec<_>, Raise> =
                    values.iter().map(|(target, expr)| Ok((target, self.eval(expr)?))).collect();
                let values = values?;
                return self.scoped(outside, |interp| {
                    for (target, value) in values {
                        interp.store(target, value)?;
                    }
                    interp.body(body)
                });
            }
            StmtKind::Generation(body) => self.generation(body)?,
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn emit_value(&mut self, value: &Value) -> Result<(), Raise> {
        if let Value::Str(text) = value {
            return self.emit(text.raw());
        }
        let mut out = self.meter.buf();
        match value {
            // Only here, where the fields can be reached: a namespace has no other text.
            Value::Namespace(at) => {
                let fields = self.namespaces.get(*at).into_iter().flatten();
                let fields =
                    fields.map(|(name, value)| (Value::Str(Rc::clone(name)), value.clone())).collect();
                out.push("<Namespace ")?;
                self.meter.dict(fields)?.repr(&mut out)?;
                out.push(">")?;
            }
            _ => value.print(&mut out)?,
        }
        self.emit(&out.into_string())
    }

    /// What a body prints, in a scope of its own. A `break` in it drops what it has printed, as in Jinja.
    fn block(&mut self, body: &'t [Stmt]) -> Result<(Value, Flow), Raise> {
        let outside = self.scope;
        self.captured(|interp| interp.scoped(outside, |interp| interp.body(body)))
    }

    fn if_(&mut self, branches: &'t [(Expr, Vec<Stmt>)], otherwise: &'t [Stmt]) -> Result<Flow, Raise> {
        for (condition, body) in branches {
            if self.eval(condition)?.truthy() {
                return self.body(body);
            }
        }
        self.body(otherwise)
    }

    fn for_(&mut self, each: &'t For) -> Result<Flow, Raise> {
        let outside = self.scope;
        let mut items = self.eval(&each.iter)?.items(&self.meter)?;
        if let Some(filter) = &each.filter {
            let mut kept = Vec::new();
            for item in items {
                let keep = self.scoped(outside, |interp| {
                    interp.store(&each.target, item.clone())?;
                    Ok(interp.eval(filter)?.truthy())
                })?;
                if keep {
                    kept.push(item);
                }
            }
            items = kept;
        }
        self.n_loops += 1;
        let finished = self.turns(each, items, outside);
        self.n_loops -= 1;
        // Jinja notes at the end of the body that the loop had a turn, which `break` and `continue` pass over.
        if finished? { Ok(Flow::Next) } else { self.scoped(outside, |interp| interp.body(&each.otherwise)) }
    }

    /// Walks the items; whether a turn reached the end of the body.
    fn turns(&mut self, each: &'t For, items: Vec<Value>, outside: usize) -> Result<bool, Raise> {
        let list: Rc<Seq> = self.meter.new_seq(SeqKind::List, items)?;
        let state = Rc::new(Loop::new(Rc::clone(&list), self.n_loops));
        let mut finished = false;
        for (at, item) in list.items.iter().enumerate() {
            state.at.set(at);
            let flow = self.scoped(outside, |interp| {
                interp.meter.work(1)?;
                interp.assign("loop", Value::Loop(Rc::clone(&state)))?;
                interp.store(&each.target, item.clone())?;
                interp.body(&each.body)
            })?;
            finished |= flow == Flow::Next;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(finished)
    }

    fn generation(&mut self, body: &'t [Stmt]) -> Result<(), Raise> {
        // A span inside of a macro or block has no place in the output: its text may yet be changed or printed twice.
        let (at_top, line) = (self.outputs.len() == 1, self.line);
        let start = self.outputs.first().map_or(0, String::len);
        let outside = self.scope;
        self.scoped(outside, |interp| interp.body(body))?;
        if at_top {
            self.generated.push(start..self.outputs.first().map_or(start, String::len));
        } else {
            self.unmarkable.get_or_insert(line);
        }
        Ok(())
    }

    fn define(&mut self, def: &'t Macro) -> Value {
        self.macros.push((def, self.scope));
        Value::Macro(self.macros.len() - 1)
    }

    fn call_block(&mut self, def: &'t Macro, call: &'t Expr) -> Result<(), Raise> {
        let Expr::Postfix(base, chain) = call else { return Ok(()) };
        let Some((Postfix::Call(args), chain)) = chain.split_last() else { return Ok(()) };
        let caller = self.define(def);
        let mut function = self.eval(base)?;
        for postfix in chain {
            function = self.postfix(function, postfix)?;
        }
        let mut given = self.given(args)?;
        given.named.push((self.meter.new_str("caller")?, caller));
        let value = self.call(&function, given)?;
        self.emit_value(&value)
    }

    fn store(&mut self, target: &'t Target, value: Value) -> Result<(), Raise> {
        match target {
            Target::Name(name) => self.assign(name, value)?,
            Target::Field(name, field) => {
                let Some(Value::Namespace(at)) = self.lookup(name)? else {
                    return Err(Raise::new(format!(
                        "cannot assign to a field of `{name}`: it is no namespace"
                    )));
                };
                let field = self.meter.new_str(field.as_str())?;
                self.set_field(at, field, value)?;
            }
            Target::Tuple(targets) => {
                let items = value.items(&self.meter)?;
                if items.len() != targets.len() {
                    return Err(Raise::new(format!(
                        "cannot unpack {} values into {} names",
                        items.len(),
                        targets.len()
                    )));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.store(target, item)?;
                }
            }
        }
        Ok(())
    }

    /// Calls a macro with values for its parameters.
    pub(super) fn call_macro(&mut self, at: usize, given: Given) -> Result<Value, Raise> {
        let Some(&(def, scope)) = self.macros.get(at) else { return Ok(Value::None) };
        if self.n_calls == MAX_CALLS {
            return Err(Raise::new(format!(
                "calls of macros nest deeper than {MAX_CALLS}: does `{}` call itself?",
                def.name
            )));
        }
        self.n_calls += 1;
        let line = self.line;
        let done = self.captured(|interp| {
            interp.scoped(scope, |interp| {
                interp.bind(def, given)?;
                interp.body(&def.body)
            })
        });
        self.n_calls -= 1;
        let (value, _) = done?;
        self.line = line;
        Ok(value)
    }

    pub(super) fn macro_name(&self, at: usize) -> &'t str {
        self.macros.get(at).map_or("", |(def, _)| &def.name)
    }

    /// Assigns a macro's parameters.
    fn bind(&mut self, def: &'t Macro, given: Given) -> Result<(), Raise> {
        let Given { mut positional, mut named } = given;
        let extra = positional.split_off(positional.len().min(def.params.len()));
        let mut positional = positional.into_iter();
        for (param, default) in &def.params {
            self.pay_for_names(named.len(), param)?;
            let by_name =
                named.iter().position(|(name, _)| name.as_str() == param).map(|at| named.remove(at).1);
            let value = match (positional.next(), by_name, default) {
                (Some(_), Some(_), _) => {
                    return Err(Raise::new(format!("macro `{}` got two values for `{param}`", def.name)));
                }
                (Some(value), None, _) | (None, Some(value), _) => value,
                (None, None, Some(default)) => self.eval(default)?,
                (None, None, None) => Value::undefined(param),
            };
            self.assign(param, value)?;
        }
        if def.takes.caller {
            let caller =
                named.iter().position(|(name, _)| name.as_str() == "caller").map(|at| named.remove(at).1);
            self.assign("caller", caller.unwrap_or(Value::Undefined(None)))?;
        }
        if def.takes.varargs {
            let extra = self.meter.seq(SeqKind::Tuple, extra)?;
            self.assign("varargs", extra)?;
        } else if !extra.is_empty() {
            return Err(Raise::new(format!("macro `{}` takes {} arguments", def.name, def.params.len())));
        }
        if def.takes.kwargs {
            let pairs = named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect();
            let kwargs = self.meter.dict(pairs)?;
            self.assign("kwargs", kwargs)?;
        } else if let Some((name, _)) = named.first() {
            return Err(Raise::new(format!("macro `{}` takes no argument `{}`", def.name, name.as_str())));
        }
        Ok(())
    }
}

/// Expressions.
impl<'t> Interp<'t> {
    pub(super) fn eval(&mut self, expr: &'t Expr) -> Result<Value, Raise> {
        self.deeper(|interp| interp.eval_here(expr))
    }

    fn eval_here(&mut self, expr: &'t Expr) -> Result<Value, Raise> {
        match expr {
            Expr::None => Ok(Value::None),
            Expr::Bool(bool) => Ok(Value::Bool(*bool)),
            Expr::Int(int) => Ok(Value::Int(*int)),
            Expr::Float(float) => Ok(Value::Float(*float)),
            Expr::Str(at) => Ok(self.literals.get(*at).cloned().unwrap_or(Value::None)),
            Expr::Name(name) => self.variable(name),
            Expr::List(items) => {
                let items = self.eval_all(items)?;
                self.meter.list(items)
            }
            Expr::Tuple(items) => {
                let items = self.eval_all(items)?;
                self.meter.seq(SeqKind::Tuple, items)
            }
            Expr::Dict(entries) => {
                let entries: Result<_, Raise> =
                    entries.iter().map(|(key, value)| Ok((self.eval(key)?, self.eval(value)?))).collect();
                self.meter.dict(entries?)
            }
            Expr::Not(inner) => Ok(Value::Bool(!self.eval(inner)?.truthy())),
            Expr::Neg(inner) => negate(&self.eval(inner)?),
            Expr::Pos(inner) => {
                let value = self.eval(inner)?;
                match value.as_int() {
                    Some(int) => Ok(Value::Int(int)),
                    None if value.as_float().is_some() => Ok(value),
                    None => Err(Raise::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
                }
            }
            Expr::And(operands) => self.until(operands, false),
            Expr::Or(operands) => self.until(operands, true),
            Expr::Arith(first, rest) => {
                let mut value = self.eval(first)?;
                for (op, operand) in rest {
                    let operand = self.eval(operand)?;
                    value = self.arith(*op, &value, &operand)?;
                }
                Ok(value)
            }
            Expr::Concat(operands) => {
                let mut out = self.meter.buf();
                for operand in operands {
                    self.eval(operand)?.print(&mut out)?;
                }
                out.into_value()
            }
            Expr::Compare(first, rest) => self.compare(first, rest),
            Expr::If(parts) => {
                let (condition, value, otherwise) = parts.as_ref();
                match otherwise {
                    _ if self.eval(condition)?.truthy() => self.eval(value),
                    Some(otherwise) => self.eval(otherwise),
                    None => Ok(Value::undefined("the value of `if` without `else`")),
                }
            }
            Expr::Postfix(base, chain) => {
                let mut value = self.eval(base)?;
                for postfix in chain {
                    value = self.postfix(value, postfix)?;
                }
                Ok(value)
            }
        }
    }

    fn eval_all(&mut self, exprs: &'t [Expr]) -> Result<Vec<Value>, Raise> {
        exprs.iter().map(|expr| self.eval(expr)).collect()
    }

    fn variable(&self, name: &str) -> Result<Value, Raise> {
        let found = self.lookup(name)?.or_else(|| super::call::global(name));
        Ok(found.unwrap_or_else(|| Value::undefined(name)))
    }

    /// The first operand whose truth is `end`, or the last.
    fn until(&mut self, operands: &'t [Expr], end: bool) -> Result<Value, Raise> {
        let mut value = Value::None;
        for operand in operands {
            value = self.eval(operand)?;
            if value.truthy() == end {
                break;
            }
        }
        Ok(value)
    }

    fn compare(&mut self, first: &'t Expr, rest: &'t [(Compare, Expr)]) -> Result<Value, Raise> {
        let mut left = self.eval(first)?;
        for (op, right) in rest {
            let right = self.eval(right)?;
            let meter = &self.meter;
            let holds = match op {
                Compare::Eq => left.equals(&right, meter)?,
                Compare::Ne => !left.equals(&right, meter)?,
                Compare::Lt => left.order(&right, meter)?.is_some_and(Ordering::is_lt),
                Compare::Le => left.order(&right, meter)?.is_some_and(Ordering::is_le),
                Compare::Gt => left.order(&right, meter)?.is_some_and(Ordering::is_gt),
                Compare::Ge => left.order(&right, meter)?.is_some_and(Ordering::is_ge),
                Compare::In => right.contains(&left, meter)?,
                Compare::NotIn => !right.contains(&left, meter)?,
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    pub(super) fn arith(&self, op: Arith, left: &Value, right: &Value) -> Result<Value, Raise> {
        let meter = &self.meter;
        match (op, left, right) {
            (Arith::Add, Value::Str(left), Value::Str(right)) => {
                let mut out = meter.buf();
                out.push(left.raw())?;
                out.push(right.raw())?;
                out.into_value()
            }
            (Arith::Add, Value::Seq(left), Value::Seq(right))
                if left.kind == right.kind && matches!(left.kind, SeqKind::List | SeqKind::Tuple) =>
            {
                meter.check((left.items.len() + right.items.len()) * size_of::<Value>())?;
                meter.seq(left.kind, left.items.iter().chain(&right.items).cloned().collect())
            }
            (Arith::Mod, Value::Str(format), args) => text::percent(format, args, meter),
            (Arith::Mul, Value::Str(_) | Value::Seq(_), _) if right.as_int().is_some() => {
                self.repeat(left, right)
            }
            (Arith::Mul, _, Value::Str(_) | Value::Seq(_)) if left.as_int().is_some() => {
                self.repeat(right, left)
            }
            _ => numbers(op, left, right),
        }
    }

    fn repeat(&self, value: &Value, times: &Value) -> Result<Value, Raise> {
        let times = usize::try_from(times.as_int().unwrap_or_default().max(0)).unwrap_or(usize::MAX);
        let mut out: Buf = self.meter.buf();
        match value {
            Value::Str(text) => {
                out.repeat(text.raw(), times)?;
                out.into_value()
            }
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple) => {
                let n_items = seq.items.len().saturating_mul(times);
                self.meter.check(n_items.saturating_mul(size_of::<Value>()))?;
                let times = if seq.items.is_empty() { 0 } else { times };
                let items = std::iter::repeat_n(&seq.items, times).flatten().cloned().collect();
                self.meter.seq(seq.kind, items)
            }
            _ => Err(Raise::new(format!("a {} cannot be repeated", value.type_name()))),
        }
    }

    fn postfix(&mut self, value: Value, postfix: &'t Postfix) -> Result<Value, Raise> {
        self.meter.work(1)?;
        match postfix {
            Postfix::Attr(name) => self.attr(&value, name),
            Postfix::Item(index) => {
                let index = self.eval(index)?;
                self.item(&value, &index)
            }
            Postfix::Slice(parts) => {
                let mut bounds = [None, None, None];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    let Some(part) = part else { continue };
                    let part = self.eval(part)?;
                    if !matches!(part, Value::None) {
                        let int = part.as_int();
                        *bound =
                            Some(int.ok_or_else(|| Raise::new("slice indices must be integers or None"))?);
                    }
                }
                self.slice(&value, bounds)
            }
            Postfix::Call(args) => {
                let given = self.given(args)?;
                self.call(&value, given)
            }
            Postfix::Filter(name, args) => {
                let given = self.given(args)?;
                self.filter(name, value, &given)
            }
            Postfix::Test { name, args, negated } => {
                let given = self.given(args)?;
                Ok(Value::Bool(self.test(name, &value, &given)? != *negated))
            }
        }
    }

    /// The arguments of a call.
    fn given(&mut self, args: &'t super::ast::Args) -> Result<Given, Raise> {
        let mut given = Given { positional: self.eval_all(&args.positional)?, named: Vec::new() };
        if let Some(splat) = &args.splat {
            let splat = self.eval(splat)?;
            given.positional.extend(splat.items(&self.meter)?);
        }
        for (name, expr) in &args.named {
            let value = self.eval(expr)?;
            if let Some(Value::Str(name)) = self.literals.get(*name) {
                given.named.push((Rc::clone(name), value));
            }
        }
        if let Some(splat) = &args.double_splat {
            let Value::Dict(dict) = self.eval(splat)? else {
                return Err(Raise::new("argument after ** must be a mapping"));
            };
            for (name, _) in &given.named {
                if dict.get_str(name.as_str(), &self.meter)?.is_some() {
                    return Err(Raise::new(format!("got two values for the argument `{}`", name.as_str())));
                }
            }
            self.meter.check(dict.entries.len() * size_of::<(Rc<Str>, Value)>())?;
            for (key, value) in &dict.entries {
                let Value::Str(key) = key else { return Err(Raise::new("keywords must be strings")) };
                self.meter.work(1)?;
                given.named.push((Rc::clone(key), value.clone()));
            }
        }
        Ok(given)
    }

    /// `value[start:stop:step]`.
    fn slice(&self, value: &Value, [start, stop, step]: [Option<i128>; 3]) -> Result<Value, Raise> {
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(Raise::new("slice step cannot be zero"));
        }
        let len = match value {
            Value::Str(_) => value.len()? as i128,
            Value::Seq(seq) if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Range) => {
                seq.items.len() as i128
            }
            Value::Undefined(_) => return Err(value.undefined_fault()),
            _ => return Err(Raise::new(format!("'{}' object cannot be sliced", value.type_name()))),
        };
        let clamp = |bound: i128, low: i128, high: i128| {
            if bound < 0 { (bound.saturating_add(len)).max(low) } else { bound.min(high) }
        };
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let start = start.map_or(if step > 0 { 0 } else { len - 1 }, |bound| clamp(bound, low, high));
        let stop = stop.map_or(if step > 0 { len } else { -1 }, |bound| clamp(bound, low, high));
        let picks = |at: i128| if step > 0 { at < stop } else { at > stop };
        let places =
            std::iter::successors(Some(start), |at| at.checked_add(step)).take_while(|&at| picks(at));
        self.meter.touch(usize::try_from(len).unwrap_or_default())?;
        match value {
            Value::Str(text) if step == 1 => {
                let (from, n_chars) = (usize::try_from(start), usize::try_from((stop - start).max(0)));
                let (from, n_chars) = (from.unwrap_or_default(), n_chars.unwrap_or_default());
                let source = text.as_str();
                let place = |n_chars: usize| match text.is_ascii() {
                    true => n_chars.min(source.len()),
                    false => source.char_indices().nth(n_chars).map_or(source.len(), |(at, _)| at),
                };
                let part = source.get(place(from)..place(from.saturating_add(n_chars))).unwrap_or_default();
                self.meter.part(text, part)
            }
            Value::Str(text) => {
                self.meter.check(text.as_str().len().saturating_mul(4))?;
                let chars: Vec<char> = text.as_str().chars().collect();
                let sliced: String =
                    places.filter_map(|at| usize::try_from(at).ok().and_then(|at| chars.get(at))).collect();
                self.meter.derived(text, sliced)
            }
            Value::Seq(seq) => {
                let items: Vec<Value> = places
                    .filter_map(|at| usize::try_from(at).ok().and_then(|at| seq.items.get(at)).cloned())
                    .collect();
                self.meter.seq(seq.kind, items)
            }
            _ => Ok(Value::None),
        }
    }
}
