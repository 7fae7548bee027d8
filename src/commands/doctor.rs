//! `flint doctor`: what works here.

use std::process::ExitCode;

use anyhow::Result;
use model::backend::Kind;
use serde_json::json;

use super::Common;
use crate::{args, output};

pub fn run(args: &args::Doctor, common: Common) -> Result<ExitCode> {
    let backends = Kind::ALL.map(|kind| (kind, kind.probe()));
    let fastest = common.backend().ok();
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let threads = rayon::current_num_threads();
    let isa = kernels::Isa::current().name();
    if args.json {
        let backends: Vec<_> = backends
            .iter()
            .map(|(kind, probe)| {
                json!({
                    "name": kind.name(),
                    "compiled_in": kind.is_compiled_in(),
                    "usable": probe.is_ok(),
                    "reason": probe.as_ref().err(),
                })
            })
            .collect();
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "backends": backends,
            "default_backend": fastest.map(Kind::name),
            "kernels": isa,
            "cpu_features": cpu_features(),
            "threads": threads,
            "memory_bytes": system.total_memory(),
            "available_memory_bytes": system.available_memory(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("flint {}", env!("CARGO_PKG_VERSION")))?;
    output::line("backends")?;
    for (kind, probe) in backends {
        let state = match &probe {
            Ok(()) if Some(kind) == fastest => "usable, the default",
            Ok(()) => "usable",
            Err(reason) => reason,
        };
        output::line(&format!("  {:8} {state}", kind.name()))?;
    }
    output::line(&format!("CPU kernels: {isa} (the CPU has {})", cpu_features().join(" ")))?;
    output::line(&format!("threads: {threads}"))?;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    output::line(&format!(
        "memory: {:.1} GiB, {:.1} available",
        gib(system.total_memory()),
        gib(system.available_memory())
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The instruction sets of this CPU that matter for speed.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("sse4.2", is_x86_feature_detected!("sse4.2")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        known.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        let known = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ];
        known.into_iter().filter(|(_, here)| *here).map(|(name, _)| name).collect()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}
