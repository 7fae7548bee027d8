//! Curves as a PNG picture.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::{FONT_8X13, FONT_9X18_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Line, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};

/// What is drawn: curves over a common axis, both axes logarithmic.
#[derive(Clone, Debug)]
pub struct Chart<'a> {
    /// Above all.
    pub title: &'a str,
    /// Below the axis of positions.
    pub x_label: &'a str,
    /// Each with its name, and points of increasing `x`.
    pub curves: Vec<(&'a str, Vec<(f64, f64)>)>,
}

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;
const LEFT: i32 = 80;
const RIGHT: i32 = WIDTH as i32 - 30;
const TOP: i32 = 60;
const BOTTOM: i32 = HEIGHT as i32 - 60;

/// Colors that people with red-green blindness tell apart (Okabe & Ito 2008).
const COLORS: [Rgb888; 4] =
    [Rgb888::new(0, 114, 178), Rgb888::new(213, 94, 0), Rgb888::new(0, 158, 115), Rgb888::new(204, 121, 167)];
const INK: Rgb888 = Rgb888::new(40, 40, 40);
const GRID: Rgb888 = Rgb888::new(225, 225, 225);

impl Chart<'_> {
    /// Writes the picture, atomically.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut canvas = Canvas { pixels: vec![255; (3 * WIDTH * HEIGHT) as usize] };
        let Ok(()) = self.draw(&mut canvas);
        model::files::write_atomic(path, |f| {
            let mut encoder = png::Encoder::new(f, WIDTH, HEIGHT);
            encoder.set_color(png::ColorType::Rgb);
            let mut writer = encoder.write_header().map_err(io::Error::other)?;
            writer.write_image_data(&canvas.pixels).map_err(io::Error::other)?;
            writer.finish().map_err(io::Error::other)
        })
    }

    fn draw(&self, canvas: &mut Canvas) -> Result<(), Infallible> {
        let all = || self.curves.iter().flat_map(|(_, points)| points.iter().copied());
        let xs = || all().map(|(x, _)| x.max(1.0));
        let (x_low, x_high) = powers_around(xs().fold(f64::MAX, f64::min), xs().fold(1.0, f64::max));
        let values = || all().map(|(_, y)| y).filter(|y| y.is_finite() && *y > 0.0);
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN_POSITIVE, f64::max));
        let (low, high) = powers_around(low, high);
        let x_at = |x: f64| LEFT + (part(x, x_low, x_high) * f64::from(RIGHT - LEFT)) as i32;
        let y_at = |y: f64| BOTTOM - (part(y, low, high) * f64::from(BOTTOM - TOP)) as i32;
        let small = MonoTextStyle::new(&FONT_8X13, INK);
        let text = |canvas: &mut Canvas, text: &str, at: Point, alignment| {
            Text::with_alignment(text, at, small, alignment).draw(canvas).map(drop)
        };
        for tick in ticks(low, high) {
            let y = y_at(tick);
            line(canvas, Point::new(LEFT, y), Point::new(RIGHT, y), GRID, 1)?;
            text(canvas, &number(tick), Point::new(LEFT - 8, y + 4), Alignment::Right)?;
        }
        for x in ticks(x_low, x_high) {
            text(canvas, &number(x), Point::new(x_at(x), BOTTOM + 20), Alignment::Center)?;
        }
        text(canvas, self.x_label, Point::new((LEFT + RIGHT) / 2, BOTTOM + 42), Alignment::Center)?;
        let bold = MonoTextStyle::new(&FONT_9X18_BOLD, INK);
        Text::with_alignment(self.title, Point::new(WIDTH as i32 / 2, 26), bold, Alignment::Center)
            .draw(canvas)?;
        for (i, (name, points)) in self.curves.iter().enumerate() {
            let color = COLORS[i % COLORS.len()];
            let place = |&(x, y): &(f64, f64)| Point::new(x_at(x), y_at(y));
            for pair in points.windows(2) {
                line(canvas, place(&pair[0]), place(&pair[1]), color, 2)?;
            }
            let at = Point::new(LEFT + 20, TOP + 14 + 18 * i as i32);
            Rectangle::new(at - Point::new(0, 8), Size::new(14, 8))
                .into_styled(PrimitiveStyle::with_fill(color))
                .draw(canvas)?;
            text(canvas, name, at + Point::new(22, 0), Alignment::Left)?;
        }
        line(canvas, Point::new(LEFT, BOTTOM), Point::new(RIGHT, BOTTOM), INK, 1)?;
        line(canvas, Point::new(LEFT, TOP), Point::new(LEFT, BOTTOM), INK, 1)
    }
}

/// Whole powers of ten around two values.
fn powers_around(low: f64, high: f64) -> (f64, f64) {
    let low = 10f64.powf(low.min(high).log10().floor());
    (low, 10f64.powf(high.log10().ceil()).max(10.0 * low))
}

/// Where a value lies between two others, 0 to 1.
fn part(value: f64, low: f64, high: f64) -> f64 {
    (value.clamp(low, high) / low).ln() / (high / low).ln()
}

/// 1, 2 and 5 in each power of ten, or the powers alone where there are many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let n_decades = (high / low).log10().round() as i32;
    let steps: &[f64] = if n_decades > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = (0..=n_decades).flat_map(|i| steps.iter().map(move |step| low * step * 10f64.powi(i)));
    all.filter(|&tick| tick <= high * 1.0001).collect()
}

/// A number in few characters.
fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

fn line(canvas: &mut Canvas, a: Point, b: Point, color: Rgb888, width: u32) -> Result<(), Infallible> {
    Line::new(a, b).into_styled(PrimitiveStyle::with_stroke(color, width)).draw(canvas)
}

/// The picture while it is drawn: rows of red, green and blue.
struct Canvas {
    pixels: Vec<u8>,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(WIDTH, HEIGHT)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, color) in pixels {
            let is_inside = (0..WIDTH as i32).contains(&x) && (0..HEIGHT as i32).contains(&y);
            if is_inside {
                let at = 3 * (y as usize * WIDTH as usize + x as usize);
                self.pixels[at..at + 3].copy_from_slice(&[color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}
