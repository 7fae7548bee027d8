//! `strftime` for the moment that a template is told.
//!
//! The moment is an input and not the clock, so that rendering is a function of its inputs.

use super::Raise;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment of the Gregorian calendar, UTC.
struct Moment {
    year: i64,
    /// From 1.
    month: usize,
    /// From 1.
    day: u32,
    /// From 0, Sunday.
    weekday: usize,
    /// From 1.
    day_of_year: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Moment {
    /// From seconds since 1970. The years 0 to 9999 are those that the formats can print.
    fn new(unix_seconds: i64) -> Option<Self> {
        let (days, seconds) = (unix_seconds.div_euclid(86_400), unix_seconds.rem_euclid(86_400));
        // Eras of 400 years, counted from March of year 0 so that leap days come last.
        let shifted = days.checked_add(719_468)?;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let day = from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let month_idx = usize::try_from(month - 1).ok()?;
        let day_of_year = before.get(month_idx)? + day + i64::from(leap && month > 2);
        (0..=9999).contains(&year).then_some(Self {
            year,
            month: month_idx + 1,
            day: u32::try_from(day).ok()?,
            weekday: usize::try_from((days + 4).rem_euclid(7)).ok()?,
            day_of_year: u32::try_from(day_of_year).ok()?,
            hour: u32::try_from(seconds / 3600).ok()?,
            minute: u32::try_from(seconds / 60 % 60).ok()?,
            second: u32::try_from(seconds % 60).ok()?,
        })
    }

    /// What one code stands for.
    fn code(&self, code: char) -> Option<String> {
        let day = DAYS.get(self.weekday).copied().unwrap_or_default();
        let month = MONTHS.get(self.month - 1).copied().unwrap_or_default();
        let hour_12 = (self.hour + 11) % 12 + 1;
        let half = if self.hour < 12 { "AM" } else { "PM" };
        Some(match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'w' => self.weekday.to_string(),
            'u' => (if self.weekday == 0 { 7 } else { self.weekday }).to_string(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'f' => "000000".to_owned(),
            'p' => half.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' | 'X' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'R' => format!("{:02}:{:02}", self.hour, self.minute),
            'D' | 'x' => format!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100),
            'c' => format!(
                "{} {} {:2} {:02}:{:02}:{:02} {}",
                &day[..3],
                &month[..3],
                self.day,
                self.hour,
                self.minute,
                self.second,
                self.year
            ),
            // The moment is naive, as Python's `now()` is: it names no zone.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

/// `strftime` of a moment in seconds since 1970, UTC. A `-` after `%` drops the leading zero, as on Linux.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> Result<String, Raise> {
    let moment = Moment::new(unix_seconds);
    let moment =
        moment.ok_or_else(|| Raise::new(format!("{unix_seconds} is no moment of the years 0 to 9999")))?;
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = chars.next();
        let (bare, code) = if code == Some('-') { (true, chars.next()) } else { (false, code) };
        let text = code.and_then(|code| moment.code(code));
        let text = text.ok_or_else(|| {
            Raise::new(format!("`strftime` code %{} is not supported", code.unwrap_or(' ')))
        })?;
        let short = text.trim_start_matches(['0', ' ']);
        out.push_str(if !bare {
            &text
        } else if short.is_empty() {
            "0"
        } else {
            short
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spelled_as_python_spells_them() {
        let format = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %I %p %y %-d %w";
        let text = |seconds| strftime(seconds, format).unwrap();
        assert_eq!(text(0), "1970-01-01 00:00:00 Thursday Thu January Jan 001 12 AM 70 1 4");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00 Tuesday Tue February Feb 060 12 AM 00 29 2");
        assert_eq!(text(1_735_689_599), "2024-12-31 23:59:59 Tuesday Tue December Dec 366 11 PM 24 31 2");
        assert!(strftime(0, "%Q").is_err() && strftime(0, "%").is_err() && strftime(i64::MAX, "%Y").is_err());
    }
}
